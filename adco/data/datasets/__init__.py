"""VOC, COCO, Places205 and ImageNet as they lie on disk."""
