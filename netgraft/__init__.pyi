"""The public names, in one place: imported on first use, and seen by type checkers and editors."""

from .data.sources import open_data as open_data
from .data.subsets import FewShotSubset as FewShotSubset
from .data.view_policy import ViewPolicy as ViewPolicy
from .derivation import Derivation as Derivation
from .derivation import derive as derive
from .deriving.options import DerivingOptions as DerivingOptions
from .distillation import distill as distill
from .distillation import prepare as prepare
from .distillation_result import DistillationResult as DistillationResult
from .distillation_result import Distilled as Distilled
from .exporting.export import Exported as Exported
from .exporting.export import export as export
from .grafting.folding import fold as fold
from .grafting.pairing import pair as pair
from .grafting.scions import graft as graft
from .methods.netgraft import NetGraft as NetGraft
from .models.loading import load_teacher as load_teacher
from .models.students import load_student as load_student
from .models.students import save_student as save_student
from .splitting.chain import BlockChain as BlockChain
from .splitting.split import split as split
from .training.runner import Runner as Runner

__version__: str
