"""What the tests of transfer/classifier share: every protocol by a short name."""

from transfer.classifier.protocols import IMAGENET, PLACES205, VOC_ADCO

ALL = {**{f"i-{n}": r for n, r in IMAGENET.items()}, **{f"p-{n}": r for n, r in PLACES205.items()}, "voc": VOC_ADCO}
