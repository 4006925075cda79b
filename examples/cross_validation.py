"""Cross-validation of a nearest-neighbour classifier on the iris data set, in plain Python: one task a fold."""

import random
from collections import Counter
from math import dist
from pathlib import Path

from loom.client import Client, tasks

DATA = Path(__file__).parent / "data" / "iris.csv"
N_FOLDS = 10
N_NEIGHBOURS = 7


@tasks.py_task(context=True, n_direct_args=1)
def load(ctx, seed, file):
    """The samples in random order: a Python object, a tuple of pairs (measures, species)."""
    samples = []
    for line in file.read().decode().splitlines()[1:]:
        *measures, species = line.split(",")
        samples.append((tuple(map(float, measures)), species))
    random.Random(seed).shuffle(samples)
    return ctx.wrap(tuple(samples))


@tasks.py_task(context=True, n_direct_args=3)
def accuracy(ctx, fold, n_folds, n_neighbours, samples):
    """Share of every n-th sample that is classified correctly by all other samples: a Python object, a float."""
    samples = samples.unwrap()
    training = [sample for place, sample in enumerate(samples) if place % n_folds != fold]
    test = samples[fold::n_folds]
    n_correct = sum(classify(measures, training, n_neighbours) == species for measures, species in test)
    return ctx.wrap(n_correct / len(test))


def classify(measures, training, n_neighbours):
    """The commonest species among the nearest neighbours."""
    nearest = sorted(training, key=lambda sample: dist(sample[0], measures))[:n_neighbours]
    return Counter(species for _, species in nearest).most_common(1)[0][0]


def main() -> None:
    samples = load(1936, tasks.open(DATA))
    folds = [accuracy(fold, N_FOLDS, N_NEIGHBOURS, samples) for fold in range(N_FOLDS)]
    with Client() as client:
        accuracies = client.gather(client.submit(folds))
    for fold, value in enumerate(accuracies):
        print(f"fold {fold}: {value:.3f}")
    print(f"mean:   {sum(accuracies) / N_FOLDS:.3f}")


if __name__ == "__main__":
    main()
