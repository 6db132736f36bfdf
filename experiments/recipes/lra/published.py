"""Published results on the tasks of the Long Range Arena: test accuracies in percent, and where they are printed."""

from dataclasses import dataclass

#: The six tasks of the benchmark's table and their names there; the average is over these, with chance where a model
#: fails at one.
TASKS = {
    "lra/listops": "ListOps",
    "lra/text": "Text",
    "lra/retrieval": "Retrieval",
    "lra/image": "Image",
    "lra/pathfinder32": "Pathfinder",
    "lra/pathx": "Path-X",
}
#: Others that the same models are tried on.
MORE_TASKS = {
    "lra/path256": "Path-256",
    "lra/path512": "Path-512",
    "lra/pathfinder64": "Pathf.-64",
    "lra/smnist": "sMNIST",
    "lra/pmnist": "pMNIST",
    "lra/scifar": "sCIFAR",
    "lra/digits": "digits",
}


@dataclass(frozen=True)
class Published:
    """What was reported for one model.

    Attributes:
        model: its name.
        layer: ours that it is, or "" if we have none.
        source: where the numbers are printed.
        accuracy: task -> percent; None where the model fails (no better than chance, or not to be computed).
    """

    model: str
    layer: str
    source: str
    accuracy: dict[str, float | None]

    @property
    def average(self) -> float | None:
        """Over the six tasks, 50 for a failed Path-X as papers have it; None if a task was not reported."""
        if not set(TASKS) <= self.accuracy.keys():
            return None
        values = [self.accuracy[task] for task in TASKS]
        return sum(50.0 if value is None else value for value in values) / len(values)


def _six(*accuracies: float | None) -> dict[str, float | None]:
    return dict(zip(TASKS, accuracies, strict=True))


#: In the order of their averages, the ones without one after the others.
PUBLISHED = (
    Published("Transformer", "attention", "Tay et al. 2020, Table 1; sMNIST, pMNIST, sCIFAR: Gu et al. 2021, Table 6",
              _six(36.37, 64.27, 57.46, 42.44, 71.40, None) | {"lra/smnist": 98.9, "lra/pmnist": 97.9,
                                                               "lra/scifar": 62.2}),
    Published("S4, 2021", "", "Gu et al. 2021, results on LRA; Table 6",
              _six(58.35, 76.02, 87.09, 87.26, 86.05, 88.10) | {"lra/smnist": 99.63, "lra/pmnist": 98.70,
                                                                "lra/scifar": 91.13}),
    Published("S4D-LegS", "s4d", "Gu et al. 2022 (S4D), results on LRA and sCIFAR",
              _six(60.47, 86.18, 89.46, 88.19, 93.06, 91.95) | {"lra/scifar": 89.92}),
    Published("S4D-Inv", "s4d", "Gu et al. 2022 (S4D), results on LRA and sCIFAR",
              _six(60.18, 87.34, 91.09, 87.83, 93.78, 92.80) | {"lra/scifar": 90.69}),
    Published("MEGA-chunk", "mega", "Ma et al. 2022, Table 2", _six(58.76, 90.19, 90.97, 85.80, 94.41, 93.81)),
    Published("S4-LegS", "", "Gu et al. 2022 (HTTYH), results on LRA and sCIFAR",
              _six(59.60, 86.82, 90.90, 88.65, 94.20, 96.35) | {"lra/scifar": 91.80}),
    Published("S4D-DFouT", "s4d", "its paper's Tables 1 and 2",
              _six(61.89, 87.41, 90.95, 88.48, 94.30, 94.17) | {"lra/path256": 87.89, "lra/scifar": 89.87}),
    Published("SGConv", "sgconv", "Li et al. 2022, results on LRA", _six(61.45, 89.20, 91.11, 87.97, 95.46, 97.83)),
    Published("S5", "", "Smith et al. 2023, results on LRA and sCIFAR",
              _six(62.15, 89.31, 91.40, 88.00, 95.33, 98.58) | {"lra/scifar": 90.10}),
    Published("MEGA", "mega", "Ma et al. 2022, Table 2", _six(63.14, 90.43, 91.25, 90.44, 96.01, 97.98)),
    Published("MultiresNet", "multires", "Shi et al. 2023, results on ListOps and sCIFAR",
              {"lra/listops": 62.75, "lra/scifar": 93.15}),
    Published("TCN", "tcn", "Bai et al. 2018, Table 1", {"lra/smnist": 99.0, "lra/pmnist": 97.2}),
    Published("SMPConv", "smpconv", "sangnekim/SMPConv smp/README.md",
              {"lra/smnist": 99.75, "lra/pmnist": 99.10, "lra/scifar": 84.86}),
)  # fmt: skip
