"""The part of a parameter that is in this process, and its state as tensors that other processes can be given.

| parameter                  | part here              | state is shown as                                          |
|----------------------------|------------------------|------------------------------------------------------------|
| ordinary tensor            | all of it              | tensors                                                    |
| DTensor (FSDP2, TP)        | its local shard        | DTensors of the parameter's mesh and placements            |
| FSDP1 flat, or a piece     | its local values       | tensors with an element a value, as FSDP1 takes apart      |

8-bit state is shown as it is wherever every cut between two processes lies between two blocks: then codes and absmax
are cut like the parameter, and shards of any mesh are put together exactly. Elsewhere (one-dimensional parameters,
narrow rows, rows cut inside a block, FSDP1) it is shown decoded, as `exp_avg` and `exp_avg_sq` in float32. For shards
of dimension 0 the parameter's shape alone says which, so any number of processes can load what any number saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pagedopt.codecs.base import BLOCK, NARROW_ROW, StateFormat

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a parameter that is here.

    Attributes:
        shape: of the whole parameter; of what is here where FSDP1 does not tell.
        local_shape: of what is here.
        mesh, placements: a DTensor's; else None and ().
        is_flattened: whether FSDP1 put the parameter into a flat one.
    """

    shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    mesh: DeviceMesh | None = None
    placements: tuple[Any, ...] = ()
    is_flattened: bool = False

    @property
    def is_distributed(self) -> bool:
        """Whether other processes may have other parts."""
        return self.mesh is not None or self.is_flattened

    def shows_decoded(self, state_format: StateFormat) -> bool:
        """Return whether state of this format has to be decoded where it is shown."""
        if not state_format.is_8bit or not self.is_distributed:
            return False
        return self.is_flattened or state_format is StateFormat.TENSORWISE8 or not self._is_cut_between_blocks

    @property
    def _is_cut_between_blocks(self) -> bool:
        """Whether any two shards of the mesh, here or elsewhere, meet between two blocks."""
        if len(self.shape) < 2 or math.prod(self.shape[1:]) < NARROW_ROW:
            return False
        columns = [size for size, dim in self._cuts if dim == 1]
        if any(dim > 1 for _, dim in self._cuts):
            return False
        width, remainder = divmod(math.prod(self.shape[1:]), math.prod(columns))
        return not columns or (remainder == 0 and self.shape[1] % math.prod(columns) == 0 and width % BLOCK == 0)

    @property
    def _cuts(self) -> list[tuple[int, int]]:
        """The mesh dimensions that shard, as (processes, dimension of the parameter)."""
        if self.mesh is None:
            return []
        return [
            (self.mesh.size(index), placement.dim)
            for index, placement in enumerate(self.placements)
            if hasattr(placement, "dim")
        ]

    def show(self, local: Tensor, blocks_per_row: int | None) -> Tensor:
        """Return an array of the state here as a tensor like the parameter.

        Args:
            local: one element a value, or one a block in shape (rows, blocks of a row).
            blocks_per_row: of `local`, where it has one element a block.
        """
        if self.mesh is None:
            return local
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

        shape = self.shape
        if blocks_per_row is not None:
            columns = math.prod(size for size, dim in self._cuts if dim == 1)
            shape = (self.shape[0], blocks_per_row * columns)
        strides = torch.empty(shape, device="meta").stride()
        meta = TensorMeta(torch.Size(shape), strides, local.dtype)
        spec = DTensorSpec(self.mesh, self.placements, tensor_meta=meta)
        # Not `from_local`: that moves the state of a mesh of accelerators onto them.
        return DTensor(local, spec, requires_grad=False)  # type: ignore[no-untyped-call]

    def take(self, shown: Tensor) -> Tensor:
        """Return what is here of a tensor that is like the parameter.

        Raises:
            ValueError: it is cut in another way, or not at all.
        """
        mesh, placements = getattr(shown, "device_mesh", None), tuple(getattr(shown, "placements", ()))
        if self.mesh is None and mesh is None:
            return shown
        if self.mesh is None or mesh != self.mesh or placements != self.placements:
            raise ValueError(
                f"it is {_described(mesh, placements)} and its parameter {_described(self.mesh, self.placements)}; "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict brings state to where it belongs"
            )
        return local_tensor(shown)


def _described(mesh: DeviceMesh | None, placements: tuple[Any, ...]) -> str:
    return "not distributed" if mesh is None else f"{', '.join(map(str, placements))} on {mesh}"


def part_of(param: Tensor) -> Part:
    """Return the part of `param` that is here."""
    local = local_tensor(param)
    mesh, placements = getattr(param, "device_mesh", None), tuple(getattr(param, "placements", ()))
    whole: tuple[int, ...] = getattr(param, "_unpadded_unsharded_size", param.shape)  # FSDP1's flat parameters have it
    is_flattened = getattr(param, "_fsdp_flattened", False)
    return Part(tuple(whole), tuple(local.shape), mesh, placements, is_flattened)


def global_numel(param: Tensor) -> int:
    """Return the values of the whole parameter, whatever of it is here."""
    return math.prod(getattr(param, "_unpadded_unsharded_size", param.shape))


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the part of a distributed tensor that is here, and an ordinary tensor as it is."""
    local = getattr(tensor, "_local_tensor", tensor)
    wait = getattr(local, "wait", None)  # the collective that makes it may still run
    return local if wait is None else wait()


def local_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """Return the part of `grad` that belongs to the part of `param` that is here.

    A gradient that is cut like its parameter, which is what FSDP makes, costs no communication. One that a tensor
    parallel layer left as a sum over processes is summed now.
    """
    placements: Any = getattr(param, "placements", None)
    if placements is not None and getattr(grad, "placements", placements) != placements:
        grad = grad.redistribute(placements=placements)  # type: ignore[attr-defined]
    return local_tensor(grad)
