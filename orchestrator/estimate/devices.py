"""What devices can do: published figures of GPUs, and this machine's cores as measured.

Figures are peaks of the makers' data sheets; `Costs` says which share of them is assumed to be
reached and what every call costs beside. Those of GPUs are assumptions that this project has not
checked on a GPU; those of cores were fitted to runs on two of them (docs/plan.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from orchestrator.estimate.probe import Speed
from slipstream.errors import SlipstreamError

GB, TB, TERA = 1e9, 1e12, 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Shares of the peaks that are reached, and seconds beside them."""

    train_share: float  # of the peak, in the learner's matrix products
    prompt_share: float  # of it, while an engine reads prompts
    decode_share: float  # of it, while an engine makes tokens, where matrices are what takes long
    bandwidth_share: float  # of memory bandwidth, while an engine makes tokens
    link_share: float  # of any link
    causal_share: float  # of the S x S products of attention, what is computed
    engine_step_s: float  # of one decode step, whatever is in it
    layer_s: float  # of one layer in it
    token_s: float  # of each token sampled
    request_s: float  # of each answer begun, ended, scored and handed over
    microbatch_s: float  # of one forward and backward
    update_s: float  # of one learner step: making tensors, advantages, the optimizer's calls
    publish_s: float  # of one version, on the learner's side
    adopt_s: float  # of one version, on an engine's side
    group_s: float  # of what replay and the processes beside the roles do for one group
    version_s: float  # and for one version: Ray, the weight board, the driver
    handover_s: float  # from one role to the other and back, once a step
    crowd_share: float  # of all cores' time, what roles that share them get to use


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, or one core. Rates are a second."""

    name: str
    flops: float  # bfloat16
    flops_float32: float
    memory_bytes: float  # 0: the machine's, which all cores share
    memory_bytes_per_s: float
    link_bytes_per_s: float  # to another device of its node, one way
    nic_bytes_per_s: float  # to another node, one way
    host_bytes_per_s: float  # to the host's memory, one way
    costs: Costs
    slower: float = 1.0  # times that Python takes of what it took where costs were fitted

    @property
    def is_core(self) -> bool:
        return self.memory_bytes == 0

    def peak(self, dtype: str) -> float:
        return self.flops if dtype == "bfloat16" else self.flops_float32


# Assumed, not measured: 40% of the peak in training and 50% in reading prompts are what well-kept
# trainers and engines report; a decode step costs 3 ms, 0.1 ms a layer and 20 us a sequence beside.
GPU_COSTS = Costs(
    train_share=0.4,
    prompt_share=0.5,
    decode_share=0.5,
    bandwidth_share=0.7,
    link_share=0.6,
    causal_share=0.5,
    engine_step_s=3e-3,
    layer_s=1e-4,
    token_s=2e-5,
    request_s=5e-4,
    microbatch_s=2e-2,
    update_s=0.1,
    publish_s=0.1,
    adopt_s=0.2,
    group_s=0.0,
    version_s=0.0,
    handover_s=0.05,
    crowd_share=1.0,
)


def _gpu(
    name: str, teraflops: float, float32: float, gigabytes: float, bandwidth: float, link: float
) -> Device:
    """`bandwidth` and `link` in GB/s; hosts are taken to have 50 GB/s, networks 50 GB/s a GPU
    where GPUs have NVLink and 12.5 GB/s elsewhere."""
    has_nvlink = link > 64
    return Device(
        name=name,
        flops=teraflops * TERA,
        flops_float32=float32 * TERA,
        memory_bytes=gigabytes * GB,
        memory_bytes_per_s=bandwidth * GB,
        link_bytes_per_s=link * GB,
        nic_bytes_per_s=(50 if has_nvlink else 12.5) * GB,
        host_bytes_per_s=min(link, 50) * GB,
        costs=GPU_COSTS,
    )


# Dense peaks (without sparsity), memory, NVLink or PCIe one way: NVIDIA's data sheets.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A10", 125, 31.2, 24, 600, 32),
        _gpu("A100", 312, 19.5, 80, 2039, 300),
        _gpu("A100-40GB", 312, 19.5, 40, 1555, 300),
        _gpu("B200", 2250, 75, 180, 8000, 900),
        _gpu("H100", 989, 67, 80, 3350, 450),
        _gpu("H100-PCIe", 756, 51, 80, 2000, 64),
        _gpu("H200", 989, 67, 141, 4800, 450),
        _gpu("L4", 121, 30.3, 24, 300, 32),
        _gpu("L40S", 362, 91.6, 48, 864, 32),
    )
}


def gpu_named(name: str) -> Device:
    """Raises SlipstreamError for one that the table lacks."""
    known = {key.lower(): gpu for key, gpu in GPUS.items()}
    if name.lower() not in known:
        raise SlipstreamError(f"--gpu: {name!r} is not known; expected one of {', '.join(GPUS)}")
    return known[name.lower()]


# Fitted on two cores (x86-64, AVX-512), where `probe` measured what REFERENCE says. Then vLLM's
# metrics went to Ray value by value; what that cost a step of 32 groups and 256 answers, 44 ms in
# Ray's agent and 20 ms in the engine, is taken off `group_s` (3.5e-3) and `request_s` (1.2e-4).
REFERENCE = Speed(flops=1.46e11, copy_bytes=1.25e10, python_s=3.35e-4)
CORE_COSTS = Costs(
    train_share=0.58,
    prompt_share=0.5,
    decode_share=0.5,
    bandwidth_share=1.0,
    link_share=1.0,
    causal_share=0.5,
    engine_step_s=4e-4,
    layer_s=8.5e-4,
    token_s=3e-5,
    request_s=4e-5,
    microbatch_s=5e-3,
    update_s=8e-3,
    publish_s=0.02,
    adopt_s=0.028,
    group_s=2.1e-3,
    version_s=0.08,
    handover_s=0.065,
    crowd_share=0.87,
)


def core_of(speed: Speed) -> Device:
    """One core of this machine. What calls cost goes with the speed of its Python."""
    slower = speed.python_s / REFERENCE.python_s
    scaled = {
        name: value * (slower if name.endswith("_s") else 1.0)
        for name, value in asdict(CORE_COSTS).items()
    }
    return Device(
        name="CPU core",
        flops=speed.flops,
        flops_float32=speed.flops,
        memory_bytes=0,
        memory_bytes_per_s=speed.copy_bytes,
        link_bytes_per_s=speed.copy_bytes / 4,
        nic_bytes_per_s=speed.copy_bytes / 8,
        host_bytes_per_s=speed.copy_bytes / 2,
        slower=slower,
        costs=Costs(**scaled),
    )
