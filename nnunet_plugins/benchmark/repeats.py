"""Repeats of trainings: how often each network is trained, and what cannot be repeated."""

from collections import Counter

from nnunet_plugins.benchmark.protocol import ALL, PARTIAL_LABELS, BenchmarkError, Protocol
from nnunet_plugins.rows import seed_of, without_seed


def check_repeats(protocol: Protocol) -> None:
    """Refuse numbers of repeats, and seeds in names, that contradict each other.

    Raises:
        BenchmarkError: naming the trainer and the remedy.
    """
    known = dict.fromkeys(without_seed(run.trainer).removesuffix(PARTIAL_LABELS) for run in protocol.runs())
    for trainer, number in protocol.repeats.items():
        if seed_of(trainer):
            raise BenchmarkError(
                f"--repeats {trainer}:{number}: the name has the seed {seed_of(trainer)} already, and --repeats gives "
                f"the seeds; write {without_seed(trainer)}:{number}"
            )
        if trainer != ALL and trainer not in known:
            raise BenchmarkError(
                f"--repeats {trainer}:{number}: this benchmark does not train {trainer}; it trains {', '.join(known)}"
            )
    for trainer in protocol.trainers:
        name = without_seed(trainer)
        if seed_of(trainer) and (number := protocol.repeats_of(name)):
            raise BenchmarkError(
                f"{trainer} has the seed {seed_of(trainer)} already, and --repeats gives the seeds 1 to {number}; name "
                f"it {name}. What is trained under the same name is a repeat then, and is not trained again"
            )
    _refuse_mixed(protocol)


def _refuse_mixed(protocol: Protocol) -> None:
    """Refuse one network with and without a seed, or with one seed under two names."""
    seeds: dict[str, list[str]] = {}
    for trainer in protocol.trainers:
        seeds.setdefault(without_seed(trainer), []).append(seed_of(trainer))
    for name, found in seeds.items():
        twice = [seed for seed, number in Counter(found).items() if number > 1]
        if twice:
            raise BenchmarkError(f"{name} is named twice with the seed {twice[0]}, its modifiers in another order")
        if "" in found and len(found) > 1:
            seeds_given = [int(seed) for seed in found if seed]
            raise BenchmarkError(
                f"{name} is named with a seed ({', '.join(filter(None, found))}) and without one. Repeats are told "
                f"apart by their seeds: leave one of them out, or give --repeats "
                f"{name}:{max(seeds_given)} and name {name} alone"
            )
