"""Which devices compute in bfloat16, and which only emulate it."""

import torch


def computes_bfloat16(device: str | torch.device) -> bool:
    """Whether a device has instructions for bfloat16.

    Without them torch imitates it: on a CPU with AVX2 alone, as in most laptops, a UNet takes some 20 times float32's
    time. True for CUDA devices from Ampere on, for AMD's, and for CPUs with AVX512-BF16, AMX or, on Arm, BF16; False on
    all others, MPS among them.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # of newer torch
        return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
