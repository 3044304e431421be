"""Inception-v3 as FID uses it: the "2015-12-05" TensorFlow graph with 1008 outputs, as a plain torch module.

It differs from the usual Inception-v3 in three places: average pools do not count the padding, the last block pools
with a maximum, and the weights are others. Parameter names are those of pytorch-fid and torch-fidelity, so that a state
dict of either loads here, as .pth or saved as safetensors. Without torchvision.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.metrics.torch_files import read_torch_tensors

# One line per convolution: name, output channels, kernel (height, width), stride. Padding keeps the size at stride 1.
_A = "branch1x1 64 1 1 1|branch5x5_1 48 1 1 1|branch5x5_2 64 5 5 1|branch3x3dbl_1 64 1 1 1|branch3x3dbl_2 96 3 3 1|"
_A += "branch3x3dbl_3 96 3 3 1|branch_pool {pool} 1 1 1"
_B = "branch3x3 384 3 3 2|branch3x3dbl_1 64 1 1 1|branch3x3dbl_2 96 3 3 1|branch3x3dbl_3 96 3 3 2"
_C = "branch1x1 192 1 1 1|branch7x7_1 {c} 1 1 1|branch7x7_2 {c} 1 7 1|branch7x7_3 192 7 1 1|branch7x7dbl_1 {c} 1 1 1|"
_C += "branch7x7dbl_2 {c} 7 1 1|branch7x7dbl_3 {c} 1 7 1|branch7x7dbl_4 {c} 7 1 1|branch7x7dbl_5 192 1 7 1|"
_C += "branch_pool 192 1 1 1"
_D = "branch3x3_1 192 1 1 1|branch3x3_2 320 3 3 2|branch7x7x3_1 192 1 1 1|branch7x7x3_2 192 1 7 1|"
_D += "branch7x7x3_3 192 7 1 1|branch7x7x3_4 192 3 3 2"
_E = "branch1x1 320 1 1 1|branch3x3_1 384 1 1 1|branch3x3_2a 384 1 3 1|branch3x3_2b 384 3 1 1|branch3x3dbl_1 448 1 1 1|"
_E += "branch3x3dbl_2 384 3 3 1|branch3x3dbl_3a 384 1 3 1|branch3x3dbl_3b 384 3 1 1|branch_pool 192 1 1 1"

# Branches of each kind, in the order of concatenation. "a+b" runs two convolutions on the same input and concatenates.
_BRANCHES = {
    "A": ["1x1", "5x5_1 5x5_2", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "avg _pool"],
    "B": ["3x3", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "max2"],
    "C": ["1x1", "7x7_1 7x7_2 7x7_3", "7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5", "avg _pool"],
    "D": ["3x3_1 3x3_2", "7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4", "max2"],
    "E": ["1x1", "3x3_1 3x3_2a+3x3_2b", "3x3dbl_1 3x3dbl_2 3x3dbl_3a+3x3dbl_3b", "avg _pool"],
    "E_max": ["1x1", "3x3_1 3x3_2a+3x3_2b", "3x3dbl_1 3x3dbl_2 3x3dbl_3a+3x3dbl_3b", "max1 _pool"],
}

# name, kind, input channels, convolutions
_MIXED = [
    ("Mixed_5b", "A", 192, _A.format(pool=32)),
    ("Mixed_5c", "A", 256, _A.format(pool=64)),
    ("Mixed_5d", "A", 288, _A.format(pool=64)),
    ("Mixed_6a", "B", 288, _B),
    ("Mixed_6b", "C", 768, _C.format(c=128)),
    ("Mixed_6c", "C", 768, _C.format(c=160)),
    ("Mixed_6d", "C", 768, _C.format(c=160)),
    ("Mixed_6e", "C", 768, _C.format(c=192)),
    ("Mixed_7a", "D", 768, _D),
    ("Mixed_7b", "E", 1280, _E),
    ("Mixed_7c", "E_max", 2048, _E),
]


LAYERS = ("pool3", "logits", "preaux", "pool2", "pool1")


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padding=0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    def __init__(self, kind: str, inputs: int, convolutions: str) -> None:
        super().__init__()
        self.branches = [branch.split() for branch in _BRANCHES[kind]]
        table = {}
        for line in convolutions.split("|"):
            name, *numbers = line.split()
            table[name.removeprefix("branch")] = [int(v) for v in numbers]
        for branch in self.branches:
            width = inputs
            for step in branch:
                if step.startswith(("avg", "max")):
                    continue
                for name in step.split("+"):
                    outputs, height, wide, stride = table[name]
                    padding = (height // 2, wide // 2) if stride == 1 else 0
                    self.add_module(f"branch{name}", _Conv(width, outputs, (height, wide), stride, padding))
                width = outputs

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._run(branch, x) for branch in self.branches], dim=1)

    def _run(self, branch: list[str], x: Tensor) -> Tensor:
        for step in branch:
            if step == "avg":
                x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            elif step == "max1":
                x = F.max_pool2d(x, 3, stride=1, padding=1)
            elif step == "max2":
                x = F.max_pool2d(x, 3, stride=2)
            else:
                x = torch.cat([getattr(self, f"branch{name}")(x) for name in step.split("+")], dim=1)
        return x


class FidInception(nn.Module):
    """Normalised images [N, 3, 299, 299] -> pool3 features [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = _Conv(32, 64, (3, 3), padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Conv(80, 192, (3, 3))
        for name, kind, inputs, convolutions in _MIXED:
            self.add_module(name, _Block(kind, inputs, convolutions))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)

    def features(self, x: Tensor, *, layer: str = "pool3") -> Tensor:
        """Features of a layer, averaged over its places: pool1 [N, 64], pool2 [N, 192], preaux [N, 768], pool3
        [N, 2048]; "logits" [N, 1008] are class scores without the bias, as Inception Scores are computed."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [N, 64, 147, 147]
        x = F.max_pool2d(x, 3, stride=2)
        if layer == "pool1":
            return x.mean(dim=(2, 3))  # [N, 64]
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)  # [N, 192, 35, 35]
        if layer == "pool2":
            return x.mean(dim=(2, 3))  # [N, 192]
        for name, *_ in _MIXED:
            x = getattr(self, name)(x)
            if layer == "preaux" and name == "Mixed_6e":
                return x.mean(dim=(2, 3))  # [N, 768]
        x = x.mean(dim=(2, 3))  # [N, 2048]
        return x @ self.fc.weight.T if layer == "logits" else x

    def logits(self, x: Tensor) -> Tensor:
        """Class scores [N, 1008] without the bias."""
        return self.features(x, layer="logits")


def load_fid_inception(weights: str | Path) -> FidInception:
    """FidInception with the weights of a local file, frozen, in eval mode.

    Args:
        weights: the .pth of pytorch-fid or torch-fidelity, read without unpickling (`labkit.metrics.torch_files`), or
            the same tensors as .safetensors.

    Raises:
        FileNotFoundError: no such file. ValueError: another kind of file, or other parameters than this network's.
    """
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no FID Inception weights at {path}: {WANTED}")
    if path.suffix in (".pth", ".pt"):
        return from_state_dict(read_torch_tensors(path), path.name)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is neither .pth nor .safetensors: {WANTED}")
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except Exception as error:
        raise ValueError(f"{path.name} is not readable as safetensors ({error}): copy it again") from error
    return from_state_dict(state, path.name)


def from_state_dict(state: dict[str, Tensor], source: str) -> FidInception:
    """FidInception from the parameters of pytorch-fid's or torch-fidelity's network."""
    with torch.device("meta"):
        network = FidInception()
    wanted = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    given = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    if wanted != set(given):
        odd = sorted(wanted ^ set(given))
        raise ValueError(f"{source} has other parameters than the FID Inception (first: {odd[0]}): {WANTED}")
    network.to_empty(device="cpu")
    state = {}
    for name, tensor in network.state_dict().items():
        state[name] = given.get(name, torch.zeros(tensor.shape, dtype=tensor.dtype))
        if state[name].shape != tensor.shape:
            raise ValueError(f"{source}: {name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}: {WANTED}")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


WANTED = (
    "expected the state dict of pytorch-fid's or torch-fidelity's inception-2015-12-05 network, .pth or .safetensors; "
    "inception_extractor() without weights takes it from an installed torch-fidelity"
)
