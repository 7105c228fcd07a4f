"""What a benchmark compares: networks on datasets, each with the plans, folds and budget of the others."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nnunet_plugins import backbones
from nnunet_plugins.datasets.plan_names import fitted_plans_name, normalised_plans_name, short_normalisation
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import write_text
from nnunet_plugins.modifiers import PRETRAINED
from nnunet_plugins.registry import RIVALS
from nnunet_plugins.rows import STOCK_TRAINER, seed_of, without_seed
from nnunet_plugins.trainers.names import find_modifier

DEFAULT_PLANS = "nnUNetPlans"
# nnU-Net's presets with a residual encoder: the planner that makes the plans, and the plans' name.
PRESETS = {
    f"resenc-{size.lower()}": (f"nnUNetPlannerResEnc{size}", f"nnUNetResEncUNet{size}Plans")
    for size in ("M", "L", "XL")
}

ATLAS = "atlas"
"""What stands for the trainer, the algorithm and the role of the atlas."""

ONE_PASS = "one pass"
"""Role of a network whose cases are predicted as a whole."""

RIVAL = "rival"
"""Role of a published network that nobody has named."""

ONE_FOR_MANY = "one for many"
"""Role of a network that was trained on a merged dataset, on the cases of one that it was merged of."""

ALL = ""
"""What stands for the trainer where a number of repeats is that of all others."""

PARTIAL_LABELS = "_PartialLabels"
"""The modifier with which trainers train on a merged dataset."""


class BenchmarkError(InputError):
    """A benchmark cannot begin or go on."""


@dataclass(frozen=True)
class Run:
    """One network on one configuration of a dataset, in all folds; with a seed, one repeat of it.

    Attributes:
        dataset: full name, Dataset004_Hippocampus.
        configuration: nnU-Net's, such as 3d_fullres.
        plans: name of the plans.
        trainer: name of the trainer.
        algorithm: what tables call it, the same for all repeats.
        role: one of `report.record.ROLES`.
        seed: of the trainer, if its name has one.
    """

    dataset: str
    configuration: str
    plans: str
    trainer: str
    algorithm: str
    role: str
    seed: str = ""

    @property
    def title(self) -> str:
        """What people call it, with its seed."""
        return f"{self.algorithm}, seed {self.seed}" if self.seed else self.algorithm

    @property
    def model(self) -> str:
        """The name of nnU-Net's folder for it."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def name(self) -> str:
        """A name for files, unique in a benchmark."""
        return f"{self.dataset}__{self.model}"

    @property
    def identity(self) -> dict[str, str]:
        """What its rows in the record have in common."""
        return asdict(self)


def joint_identity(members: Sequence[Run], role: str) -> dict[str, str]:
    """Return what the rows in the record have in common that several runs have made together; they have no seed."""
    names = {name: " + ".join(getattr(run, name) for run in members) for name in ("trainer", "algorithm")}
    return {**members[0].identity, **names, "role": role, "seed": ""}


def first_repeats(runs: Iterable[Run]) -> list[Run]:
    """Return the first run of each network: of repeats there are no ensembles, and one stands for all."""
    found: dict[tuple[str, str, str, str], Run] = {}
    for run in runs:
        found.setdefault((run.dataset, run.configuration, run.plans, run.algorithm), run)
    return list(found.values())


@dataclass(frozen=True)
class Protocol:
    """The question that a benchmark answers.

    Attributes:
        datasets: full names, with that of `merged`.
        merged: full name of a dataset that others were merged into, on which each network is trained as well, with
            `PARTIAL_LABELS`, to stand beside those of the datasets that it was merged of, on their cases.
        configurations: of every dataset.
        trainers: any that nnU-Net finds; see `baseline`. Those that differ in their seeds alone are repeats of one
            network.
        plans: plans that all networks share, or from which each one's own are made.
        gpu_memory: in GiB, what every network may use, on plans of its own that are made to fit; None for shared plans.
        folds: folds to train.
        number_of_folds: folds that the splits have, where they are made here.
        groups: by dataset, the table of its cases' groups, which splits are to keep together; nnU-Net's random splits
            of those without one.
        with_twins: add each network's ablation twin.
        with_rivals: add the published networks of `RIVALS` in all their recipes, with the modifiers of the baseline;
            a paper's recipe keeps its own loss and optimizer.
        ruled_out: networks that nobody has named and that cannot have the labels or plans: dataset, configuration,
            trainer and why.
        with_whole_volume: add each network's cases in one pass, without tiles, where memory allows it.
        with_maps: show in the report what networks do with its worst and its most different case.
        with_ensembles: let nnU-Net make the ensembles of all pairs of networks, and choose among them.
        with_atlas: add what the place of a voxel alone tells, the majority of the training labels, as a reference.
        presets: of `PRESETS`, each a further baseline, on its own plans.
        normalisations: of nnU-Net's, each a further baseline, on plans like `plans` that normalise images by it.
        repeats: by trainer, how often it is trained, with the seeds 1, 2 and so on in its name, after all else; under
            `ALL`, how often all others are. Those without a number are trained once, as they are named.
        pretrained: checkpoint from which trainers with `_Pretrained` start.
        test: also predict the test images of every dataset.
        tolerance: of the surface Dice, in mm.
        device: torch device type.
    """

    datasets: tuple[str, ...]
    configurations: tuple[str, ...]
    trainers: tuple[str, ...]
    plans: str = DEFAULT_PLANS
    gpu_memory: float | None = None
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    number_of_folds: int = 5
    groups: Mapping[str, str] = field(default_factory=dict)
    with_twins: bool = False
    with_rivals: bool = False
    ruled_out: tuple[tuple[str, str, str, str], ...] = ()
    with_whole_volume: bool = False
    with_maps: bool = False
    with_ensembles: bool = True
    with_atlas: bool = False
    merged: str | None = None
    presets: tuple[str, ...] = ()
    normalisations: tuple[str, ...] = ()
    pretrained: str | None = None
    test: bool = False
    repeats: Mapping[str, int] = field(default_factory=dict)
    tolerance: float = 1.0
    device: str = "cuda"

    def runs(self) -> list[Run]:
        """Return all networks on all configurations; the baseline stands first, and repeats behind each other."""
        cells = [(dataset, configuration) for dataset in self.datasets for configuration in self.configurations]
        runs = [replace(run, dataset=d, configuration=c) for d, c in cells for run in self._algorithms(d)]
        ruled_out = {place[:3] for place in self.ruled_out}
        return [run for run in runs if (run.dataset, run.configuration, without_seed(run.trainer)) not in ruled_out]

    def baseline(self, dataset: str | None = None) -> str:
        """Return the trainer to compare the others with, without a seed.

        It is nnU-Net's own, else its first variant, else the first.
        """
        trainers = [without_seed(trainer) for trainer in self._trainers(dataset)]
        stock = [trainer for trainer in trainers if split_name(trainer)[0] == STOCK_TRAINER]
        return STOCK_TRAINER if STOCK_TRAINER in stock else (stock or trainers)[0]

    def beside(self, run: Run) -> Run | None:
        """Return what stands beside a run: the same network, trained on the merged dataset; None if there is none.

        Returns:
            the run on the merged dataset. `one_for_many` is its row.
        """
        if self.merged in (None, run.dataset):
            return None
        like = (run.configuration, run.plans, without_seed(run.trainer) + PARTIAL_LABELS, run.seed)
        found = (one for one in self.runs() if one.dataset == self.merged)
        return next(
            (one for one in found if (one.configuration, one.plans, without_seed(one.trainer), one.seed) == like), None
        )

    def one_for_many(self, run: Run) -> Run:
        """Return what stands for `beside(run)` among the results of the dataset of a run."""
        other = self.beside(run)
        assert other is not None
        name = f"{run.algorithm} trained on {other.dataset[11:]}"
        return replace(other, dataset=run.dataset, algorithm=name, role=ONE_FOR_MANY)

    def atlases(self) -> list[Run]:
        """Return the atlas on every configuration, if it is asked for: no trainer's, so that nothing is trained."""
        cells = [(dataset, configuration) for dataset in self.datasets for configuration in self.configurations]
        return [Run(*cell, self.plans, ATLAS, ATLAS, ATLAS) for cell in cells if self.with_atlas]

    def in_one_pass(self, run: Run) -> Run | None:
        """Return what stands for a run whose cases go through the network in one pass; None if that is not asked for.

        It has the run's trainings. Networks that are fitted to an image, and second stages of cascades, have none.
        """
        if not self.with_whole_volume or run.configuration == "3d_cascade_fullres" or is_fitted(run.trainer):
            return None
        return replace(run, algorithm=f"{run.algorithm}, in one pass", role=ONE_PASS)

    def plans_of(self, trainer: str) -> str:
        """Return the name of the plans that a trainer is trained with."""
        if self.gpu_memory is None:
            return self.plans
        return fitted_plans_name(self.plans, trainer, self.gpu_memory)

    def is_made_to_fit(self, run: Run) -> bool:
        """Tell whether a run has plans of its own that are made to fit the memory."""
        return self.gpu_memory is not None and run.plans == self.plans_of(run.trainer)

    def _trainers(self, dataset: str | None) -> tuple[str, ...]:
        """Return the trainers of a dataset; networks that are fitted to an image know no partial labels."""
        if dataset is None or dataset != self.merged:
            return self.trainers
        return tuple(trainer + PARTIAL_LABELS for trainer in self.trainers if not is_fitted(trainer))

    def _algorithms(self, dataset: str) -> list[Run]:
        given: dict[str, dict[str, str]] = {}  # by the name without a seed: the names by seed
        for trainer in self._trainers(dataset):
            given.setdefault(without_seed(trainer), {})[seed_of(trainer)] = trainer
        baseline, trainers = self.baseline(dataset), list(given)
        roles = {baseline: "baseline", **{trainer: "method" for trainer in trainers if trainer != baseline}}
        seeds = {trainer: list(names) for trainer, names in given.items()}
        if self.with_twins:
            for trainer in trainers:
                # The weights are of another network than the twin's.
                twin = None if starts_from_weights(trainer) else twin_of(trainer)
                if twin is not None:
                    roles.setdefault(twin, "twin")
                    seeds.setdefault(twin, seeds[trainer])
        if self.with_rivals:
            for rival in (_like(baseline, rival) for rival in RIVALS):
                roles.setdefault(rival, RIVAL)
                seeds.setdefault(rival, seeds[baseline])

        def repeat(trainer: str, plans: str, name: str, role: str) -> list[Run]:
            number = self.repeats_of(trainer)
            own = [str(seed) for seed in range(1, number + 1)] if number else seeds[trainer]
            named = given.get(trainer, {})
            names = {seed: named.get(seed, trainer + (f"_{seed}seed" if seed else "")) for seed in own}
            return [Run("", "", plans, names[seed], name, role, seed) for seed in own]

        names = short_names(list(roles))
        runs = [run for one, role in roles.items() for run in repeat(one, self.plans_of(one), names[one], role)]
        for preset in self.presets:
            name = f"{names[baseline]} ({preset.replace('resenc-', 'ResEnc ').upper().replace('RESENC', 'ResEnc')})"
            runs += repeat(baseline, PRESETS[preset][1], name, "own plan")
        for plans, scheme in self.normalised_plans().items():
            runs += repeat(baseline, plans, f"{names[baseline]} ({short_normalisation(scheme)})", "own plan")
        return runs

    def normalised_plans(self) -> dict[str, str]:
        """Return the normalisations by the names of their plans."""
        return {normalised_plans_name(self.plans, scheme): scheme for scheme in self.normalisations}

    def repeats_of(self, trainer: str) -> int:
        """Return how often a trainer is repeated; 0 if it is trained as it is named.

        Args:
            trainer: without a seed; on a merged dataset, with or without `PARTIAL_LABELS`.
        """
        return self.repeats.get(trainer.removesuffix(PARTIAL_LABELS), self.repeats.get(ALL, 0))

    def write(self, file: Path) -> None:
        """Write the question as JSON."""
        write_text(file, json.dumps(asdict(self), indent=2))


def split_name(trainer: str) -> tuple[str, str]:
    """Split a trainer's name into the network's part and its modifiers."""
    base, underscore, modifiers = trainer.partition("_")
    return base, underscore + modifiers


def _like(baseline: str, rival: str) -> str:
    """Return a rival with the baseline's modifiers."""
    # Weights to start from are of another network than the rival's, and a paper's recipe is its loss and its optimizer.
    own = ("start", "loss", "optimizer") if rival.endswith("Paper") else ("start",)
    parts = [part for part in baseline.split("_")[1:] if not ((found := find_modifier(part)) and found[0].slot in own)]
    return "_".join([rival, *parts])


def is_fitted(trainer: str) -> bool:
    """Tell whether a trainer's network is fitted to every image."""
    row = backbones.find(split_name(trainer)[0])
    return bool(row and row.fitted)


def starts_from_weights(trainer: str) -> bool:
    """Tell whether a trainer starts from the weights of another training."""
    return PRETRAINED in split_name(trainer)[1].split("_")


def twin_of(trainer: str) -> str | None:
    """Return the ablation twin of one of our trainers, with the same modifiers; None for others and the stock U-Net."""
    base, modifiers = split_name(trainer)
    row = backbones.find(base)
    return row.twin + modifiers if row else None


def short_names(trainers: Sequence[str]) -> dict[str, str]:
    """Return what tables call the trainers: the network, with modifiers only where the trainers differ in them.

    Trainers that would have the same name, such as MyNet and nnUNetTrainerMyNet, keep their own.
    """
    parts = {trainer: split_name(trainer) for trainer in trainers}
    same = len({modifiers for _, modifiers in parts.values()}) == 1
    names = {}
    for trainer, (base, modifiers) in parts.items():
        network = base.removeprefix(STOCK_TRAINER) or "U-Net"
        names[trainer] = network if same else network + modifiers.replace("_", " ")
    taken = Counter(names.values())
    return {trainer: trainer if taken[name] > 1 else name for trainer, name in names.items()}
