# SPDX-License-Identifier: MIT
"""Says where arrays lie on a mesh: images along its axis "data", parameters along "model".

And how: the order in memory of the axes of a convolution's kernel, which is none of its shape's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxgen import fields
from jaxgen.stable_diffusion.control import Control
from jaxgen.stable_diffusion.inputs import Inputs

DATA, MODEL = "data", "model"  # mesh axes: images, and parts of large parameters
BY_ROW = (
    "step_noise",
    "guidance_scale",
    "guidance_rescale",
    "pag_scale",
    "text_index",
)  # [N, B, ...]
BEFORE_ATTENTION = ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj")
SHARDED_FROM = 2**14  # entries; smaller parameters are kept whole on every device
# The order in memory of the axes of a kernel [H, W, I, O], the slowest first: O H W I. XLA asks for
# it in programs for GPUs (`Layout.AUTO`), which otherwise begin by copying the kernels.
CUDNN_ORDER = (3, 0, 1, 2)

PlaceOf = Callable[[tuple[str, ...], tuple[int, ...]], NamedSharding | Format | None]


def mesh_of(data_devices: int = 1, model_devices: int = 1) -> Mesh | None:
    """Makes a mesh that divides images and parameters over so many devices; None for one device."""
    needed, count = data_devices * model_devices, jax.device_count()
    if min(data_devices, model_devices) < 1 or needed > count:
        raise ValueError(
            f"{data_devices} data devices and {model_devices} model devices need {needed} devices; "
            f"there are {count}"
        )
    if needed == 1:
        return None
    devices = np.array(jax.devices()[:needed]).reshape(data_devices, model_devices)
    return Mesh(devices, (DATA, MODEL))


def check(mesh: Mesh | None) -> Mesh | None:
    """Checks a mesh and gives it automatic axes, which let the compiler divide the work."""
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is {fields.shown(mesh)}; give a jax.sharding.Mesh, or None")
    unknown = [name for name in mesh.axis_names if name not in (DATA, MODEL)]
    if unknown:
        raise ValueError(
            f"the mesh has axes {', '.join(map(str, mesh.axis_names))}; expected {DATA!r} (images "
            f"are divided over it), {MODEL!r} (parameters are), or both"
        )
    return Mesh(mesh.devices, mesh.axis_names)


def num_groups(mesh: Mesh | None) -> int:
    """Counts the groups of images that a batch is divided into."""
    return 1 if mesh is None else mesh.shape.get(DATA, 1)


def check_divides(mesh: Mesh | None, batch: int) -> None:
    """Raises ValueError unless every group of devices gets the same number of images."""
    if batch % num_groups(mesh):
        raise ValueError(
            f"batch of {batch} cannot be divided over {num_groups(mesh)} devices; use a multiple"
        )


def check_kernel_layout(name: Any) -> str | None:
    """Returns the name of a layout of kernels; raises ValueError unless it is "cudnn" or None."""
    if not isinstance(name, str | None) or name not in ("cudnn", None):
        raise ValueError(f"kernel_layout is {fields.shown(name)}; use 'cudnn', or None")
    return name


def of_parameters(
    mesh: Mesh | None, heads: Sequence[int] = (), kernel_layout: str | None = None
) -> PlaceOf | None:
    """Returns a function (path, shape) -> where a parameter lies, and how; None: as JAX does it.

    kernel_layout: "cudnn" puts the kernels of convolutions into `CUDNN_ORDER`; see `_division` for
    the rest.
    """
    divided = _division(mesh, heads)
    if kernel_layout is None:
        return divided

    def place(path: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding | Format | None:
        where = None if divided is None else divided(path, shape)
        if len(shape) != len(CUDNN_ORDER):
            return where
        return Format(Layout(CUDNN_ORDER), where or SingleDeviceSharding(jax.local_devices()[0]))

    return place


def _division(
    mesh: Mesh | None, heads: Sequence[int]
) -> Callable[[tuple[str, ...], tuple[int, ...]], NamedSharding] | None:
    """Returns a function (path, shape) -> sharding of a parameter; None without a mesh.

    Large kernels are divided over "model" by their last axis, the features that they compute: each
    device computes its own, and the compiler gathers them where the next layer needs all.
    heads: the network's numbers of attention heads. On a GPU the kernels of queries, keys and
    values stay whole if one of these cannot be divided: cuDNN's attention takes whole heads only.
    """
    if mesh is None:
        return None
    parts = mesh.shape.get(MODEL, 1)
    heads_divide = jax.default_backend() != "gpu" or not any(count % parts for count in heads)

    def sharding(path: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
        large = len(shape) > 1 and np.prod(shape) >= SHARDED_FROM
        whole = not heads_divide and path[-2] in BEFORE_ATTENTION
        if parts == 1 or not large or shape[-1] % parts or whole:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, P(*(None,) * (len(shape) - 1), MODEL))

    return sharding


def rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of arrays whose axis `axis` is the batch: along "data" if it exists."""
    return NamedSharding(mesh, P(*(None,) * axis, DATA) if DATA in mesh.shape else P())


def as_float32(column: np.ndarray) -> np.ndarray:
    """Casts a column of a table to what devices compute with: float32, or int32 for numbers."""
    whole = np.issubdtype(column.dtype, np.integer)
    return np.asarray(column, np.int32 if whole else np.float32)


def place(mesh: Mesh | None, tree: Any) -> Any:
    """Moves arrays with a leading batch axis to the devices."""
    return jax.device_put(tree) if mesh is None else jax.device_put(tree, rows(mesh))


def place_everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """Moves arrays to the devices, whole to each of them."""
    return jax.device_put(tree) if mesh is None else jax.device_put(tree, NamedSharding(mesh, P()))


def check_kept(inputs: Inputs) -> None:
    """Raises ValueError for inputs whose noise a run on the device has used up."""
    if isinstance(inputs.noise, jax.Array) and inputs.noise.is_deleted():
        raise ValueError(
            "these inputs were run, and their noise given away; make new ones by `inputs`"
        )


def place_inputs(mesh: Mesh | None, inputs: Inputs) -> Inputs:
    """Moves all arrays of `Inputs` to the devices that use them, so that no step moves them again.

    The table and the choice of a start lie on all devices, everything else is divided by images.
    """
    if mesh is None:
        return jax.device_put(inputs)
    everywhere = NamedSharding(mesh, P())
    shardings: dict[str, Any] = {
        "table": everywhere,
        "from_image": everywhere,
        "full": everywhere,
        "pag_layers": everywhere,
        **dict.fromkeys(BY_ROW, rows(mesh, axis=1)),
    }
    arrays = {
        name: jax.device_put(value, shardings.get(name, rows(mesh)))
        for name, value in inputs._asdict().items()
        if name not in ("controls", "adapters")
    }
    controls = tuple(  # whose parameters lie where they should
        Control(
            own.params,
            jax.device_put(own.image, rows(mesh)),
            *jax.device_put((own.scale, own.depths, own.of_negative), everywhere),
        )
        for own in inputs.controls
    )
    adapters = inputs.adapters
    if adapters is not None:
        factors = jax.device_put(adapters.factors, everywhere)
        adapters = adapters._replace(
            factors=factors, scale=jax.device_put(adapters.scale, rows(mesh))
        )
    return inputs._replace(**arrays, controls=controls, adapters=adapters)
