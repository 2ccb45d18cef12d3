"""What jobs can be asked for: every option of ``netgraft distill``, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.deriving.options import DerivingOptions
from netgraft.errors import RequestError
from netgraft.grafting.options import PairingOptions
from netgraft.options import SCOPES, Option, check_held, declared, group, option
from netgraft.training.options import DeviceOptions

LARGEST_IMAGE = 2048  # pixels a side, at which a layer of 64 channels takes 1 GiB


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Of every job.

    Raises:
        RequestError: A value is of another type than its option, not finite, or outside its range.
    """

    seed: int = option(0, "Seed of weights, views, batches and the subset.", recorded=True)
    out: Path | None = option(None, "Run folder; a new one under runs/ by default.")
    resume: bool = option(False, "Go on with the run in the folder.")
    data_root: Path | None = option(None, "Folder of the named data sets; NETGRAFT_DATA by default.", section="data")
    eval_data: str | None = option(
        None, "Test images, if not those of --data; labelled ones for an accuracy.", section="data"
    )
    download: bool = option(False, "Let torchvision download the data set.", section="data")
    skip_broken: bool = option(
        False,
        "Read every file once at first, and leave those out that hold no image; they are counted and named.",
        section="data",
    )
    image_size: int | None = option(
        None,
        "Height and width of what the model takes; its own by default.",
        minimum=1,
        maximum=LARGEST_IMAGE,
        scope="pair",
        section="models",
    )
    compute: DeviceOptions = group(DeviceOptions)

    def __post_init__(self) -> None:
        check_held(self)


def ordered(kind: type[JobOptions]) -> dict[str, Option]:
    """Return a job's options as people read them.

    Models and data come first, then how to train, then where and when; in each part what all jobs have comes last.
    """
    shared = declared(JobOptions)

    def place(option: Option) -> tuple[int, bool]:
        return SCOPES.index(option.scope), option.name in shared

    return {option.name: option for option in sorted(declared(kind).values(), key=place)}


@dataclass(frozen=True)
class DistillOptions(JobOptions):
    """Of ``netgraft distill``."""

    data: str = option(
        "digits",
        "Name or path of the images: digits, cifar10, a folder, a tar archive, ...",
        scope="pair",
        section="data",
    )
    teacher: str | None = option(
        None,
        "A timm model, hf-hub:..., local-dir:..., or a folder that a run left; the data set's own by default.",
        scope="pair",
        section="models",
    )
    student: str | None = option(
        None,
        "A timm model, or a folder whose model goes on learning, with a new head where its classes are others; the "
        "data set's own by default, or one that is derived from the teacher.",
        scope="pair",
        section="models",
    )
    keep: str | None = option(
        None,
        "What a derived student may cost: macs=0.5, parameters=2.5M, ms=3 (milliseconds of an image here), or several; "
        "fractions are of the teacher's, 0.7,0.5 makes a student each, and macs=0.5 is the default without a student.",
        scope="pair",
        section="models",
    )
    protect: str | None = option(
        None,
        "Modules of the teacher that stay whole in a derived student, separated by commas: head,blocks.*.attn.",
        scope="pair",
        section="models",
    )
    force: str | None = option(
        None,
        "Places of a derived student whose width is given and not chosen: features.3=32,blocks.4.2=0 (left out).",
        scope="pair",
        section="expert",
    )
    library: Path | None = option(
        None,
        "library.json of an earlier run with this teacher and these views, used again for another budget.",
        section="expert",
    )
    teacher_weights: Path | None = option(
        None,
        "safetensors file or checkpoint, sought among the named data sets too; timm's weights by default.",
        scope="pair",
        section="models",
    )
    num_classes: int | None = option(
        None,
        "Classes of the model that is given first; as many as its weights have by default, and others are refused.",
        minimum=1,
        maximum=2**20,
        scope="pair",
    )
    student_weights: str | None = option(
        None,
        "Weights that the student starts with and keeps: a safetensors file or checkpoint, sought among the named data "
        "sets too, or pretrained, timm's own; a head of other classes is replaced.",
        scope="pair",
    )
    class_map: Path | None = option(
        None,
        "Where each class of the images stands among the model's: a .txt file with a class name a line, or a .json "
        "file of names and numbers; by default the names of both tell, or the order where there are none.",
        scope="pair",
        section="data",
    )
    shots: int | None = option(
        None, "Images a class; 10 unless --images or --subset is given.", scope="run", section="data"
    )
    images: int | None = option(None, "Images in all, regardless of class.", scope="run", section="data")
    hold_out: float | None = option(
        None,
        "Images that nothing is made of and that measure the student where there are no test labels: a part of all, "
        "0.2, or a number; by default those that are not among the few.",
        minimum=0,
        scope="run",
        section="data",
    )
    method: str = option(
        "netgraft",
        "Method that trains the student, as netgraft methods lists them; several joined by + are trained at once.",
        scope="run",
        recorded=True,
        section="method",
    )
    preset: str = option(
        "default",
        "Preset of the method, such as default, thorough or reference.",
        scope="run",
        recorded=True,
        section="method",
    )
    settings: Mapping[str, str] = field(default_factory=dict)
    """Hyper-parameters as text, over the preset's."""
    views: str | None = option(
        None,
        "Views that are made of the images, if not the preset's; rich-endless shows no view twice, for long runs.",
        choices=tuple(VIEW_POLICIES),
        scope="run",
        section="method",
    )
    pairing: PairingOptions = group(PairingOptions)
    deriving: DerivingOptions = group(DerivingOptions)
    select: str = option(
        "last",
        "Which student is kept: the last, or best-on-test, against the protocol: that of the best look at the test set "
        "during the last phase, labelled in every table.",
        choices=("last", "best-on-test"),
        scope="run",
        section="expert",
    )
    looks: int = option(
        100,
        "How often best-on-test looks at the test set, at even distances.",
        minimum=1,
        scope="run",
        section="expert",
    )
    labeled: bool = option(
        False, "Give the images' labels to the method; views then show one image each.", scope="run", section="method"
    )
    subset: Path | None = option(None, "A subset file to use instead of drawing one.", section="data")
    subset_seed: int | None = option(None, "Seed of the drawn subset; --seed by default.", section="expert")
    keep_answers: Path | None = option(
        None, "Folder that keeps the teacher's test answers, and libraries, for other runs.", section="expert"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_answers is not None and self.keep_answers.exists() and not self.keep_answers.is_dir():
            raise RequestError(f"expected a folder for keep_answers, got {self.keep_answers}, a file; give another")
