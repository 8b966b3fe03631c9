"""VOC, COCO, Places205 and ImageNet on disk: their layouts, annotation files, checks and fingerprints."""
