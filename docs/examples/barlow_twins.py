"""A new objective: Barlow Twins (Zbontar et al., ICML 2021), eq. (1). Arguments: those of tools/train_adco.py.

python docs/examples/barlow_twins.py --config-file docs/examples/barlow_twins.yaml data.root=FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout

from torch.nn.functional import normalize  # noqa: E402

from adco import methods  # noqa: E402
from adco.losses.pairs import make_pairs  # noqa: E402
from adco.methods.base import Method, StepOutput  # noqa: E402
from adco.models.encoder import Encoder  # noqa: E402
from adco.utils import distributed  # noqa: E402
from tools import train_adco  # noqa: E402


class BarlowTwins(Method):
    """Equal dimensions of two views agree, different ones are uncorrelated; no negatives and no key encoder."""

    def __init__(self, recipe):
        super().__init__(recipe, Encoder(recipe.encoder, normalize=False), make_pairs(2, symmetric=True))

    def compute_loss(self, outputs, targets, progress):
        first, second = (distributed.all_gather_with_gradient(outputs[view]) for view in (0, 1))
        a, b = ((z - z.mean(dim=0)) / z.std(dim=0, correction=0) for z in (first, second))
        c = a.T @ b / len(a)  # (D, D) correlations over the images of all ranks
        on, off = (1 - c.diagonal()).square().sum(), c.square().sum() - c.diagonal().square().sum()
        loss = on + 0.005 * off
        q, k = (normalize(outputs[view].detach(), dim=1) for view in (0, 1))  # for the embedding metrics
        return StepOutput(loss, {"loss": loss.detach(), "off_diagonal": off.detach()}, q, k)


methods.register("barlow", BarlowTwins)

if __name__ == "__main__":
    sys.exit(train_adco.main())
