"""An accelerator that is made up: tensors that live on it, and a record of what a program would wait for there.

Its tensors have true values, kept on the CPU, and claim to lie on torch's "meta" device. So a test can compare a step's
results with those on the CPU, and see each copy between host and device, each look at a value, and each operation whose
output has a size that depends on values: all of these stop the host until the device has caught up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.optim.optimizer as of_torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")

aten = torch.ops.aten
# Operations that wait by themselves on CUDA: they look at values, or at the error code of a solver.
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.bincount.default,
    aten.repeat_interleave.Tensor, aten._linalg_check_errors.default, aten._linalg_eigh.default,
    aten._linalg_svd.default, aten.linalg_eig.default, aten._coalesce.default, aten._to_sparse.default,
    aten._to_sparse.sparse_dim, aten.multinomial.default, aten.segment_reduce.default,
}  # fmt: skip
INDEXING = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip

# What takes tensors of the host and of the device together. Other arithmetic takes a single number from the host as an
# argument of its kernel.
COPYING = {*INDEXING, aten.copy_.default, aten._foreach_copy_.default, aten.where.self}


class DeviceTensor(Tensor):
    """A tensor on the made-up device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a tensor of the made-up device, outside of `with the_device()`.")


class _Device(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        own = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        self._note(func, args, kwargs, own, [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)])
        wanted = kwargs.get("device")
        there = bool(own) if wanted is None else torch.device(wanted) == DEVICE
        if wanted is not None and there:
            kwargs["device"] = torch.device("cpu")
        if func in {aten.copy_.default, aten._foreach_copy_.default}:
            first = args[0] if isinstance(args[0], Tensor) else args[0][0]
            there = isinstance(first, DeviceTensor)
        found = func(*_held(args), **_held(kwargs))
        if not there:
            return found
        known = {id(tensor.held): tensor for tensor in own}
        wrapped = tree_map_only(
            Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else DeviceTensor(tensor), found
        )
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if own else wrapped

    def _note(self, func, args, kwargs, own, of_host) -> None:
        """Record what would wait: the operation's name and why."""
        if kwargs.get("device") is not None:
            to_device = torch.device(kwargs["device"]) == DEVICE
            if own and not to_device:
                self.waits.append(f"{func}: a copy to the host")
            elif of_host and to_device and not kwargs.get("non_blocking"):
                self.waits.append(f"{func}: a copy from the host")
        elif own and func in WAITING:
            self.waits.append(f"{func}: a look at values")
        elif own and func in INDEXING and any(_is_mask(index) for index in args[1]):
            self.waits.append(f"{func}: a mask as an index")
        elif own and of_host and func in COPYING:
            self.waits.append(f"{func}: a copy between host and device, or an index from the host")
        elif own and of_host and (torch.Tag.pointwise not in func.tags or any(part.dim() for part in of_host)):
            raise RuntimeError(f"{func} of tensors on the host and on the device.")


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in {torch.bool, torch.uint8}


class _Copies(TorchFunctionMode):
    """Makes the copies that ``torch.tensor(numbers, device=...)`` and ``tolist()`` are on an accelerator."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if (
            func in {torch.tensor, torch.as_tensor, torch.asarray}
            and torch.device(kwargs.get("device") or "cpu") == DEVICE
        ):
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], DeviceTensor):
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


def _held(tree: Any) -> Any:
    return tree_map_only(DeviceTensor, lambda tensor: tensor.held, tree)


@contextmanager
def the_device() -> Iterator[list[str]]:
    """Provide the made-up device; gives the list that grows by what would wait.

    Modules move there by ``to(DEVICE)``. Optimizers choose as on an accelerator: ``foreach`` where nothing is said,
    ``fused`` where it is asked for.
    """
    waits: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"):
            known = getattr(of_torch, name)
            patch.setattr(of_torch, name, lambda known=known: [*known(), DEVICE.type])
        move, autocast = nn.Module.to, torch.autocast
        patch.setattr(nn.Module, "to", lambda module, *to: _moved(module) if DEVICE in to else move(module, *to))
        # The arithmetic is the CPU's.
        patch.setattr(
            torch,
            "autocast",
            lambda kind, *rest, **more: autocast("cpu" if kind == DEVICE.type else kind, *rest, **more),
        )
        with _Copies(), _Device(waits):
            yield waits


def _moved(module: nn.Module) -> nn.Module:
    """Move a module's parameters, buffers and a fork's other tensors to the device, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(DeviceTensor(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = DeviceTensor(buffer)
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                setattr(part, name, DeviceTensor(value))
    return module


def on_host(tensor: Tensor) -> Tensor:
    """Return the values, without a record."""
    return tensor.held if isinstance(tensor, DeviceTensor) else tensor
