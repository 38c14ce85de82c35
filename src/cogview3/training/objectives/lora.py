"""Low-rank adapters (LoRA, by peft) on a frozen UNet: created, and written in the format of `generate --lora`."""

import hashlib
from pathlib import Path

from diffusers.models import UNet2DConditionModel

from cogview3.config import Lora, UserError
from cogview3.generation.lora import RelayLoraMixin

ADAPTER = "default"


def add_adapter(unet: UNet2DConditionModel, settings: Lora, bf16: bool) -> None:
    """Freeze a UNet and give it an adapter, which changes nothing yet: only the adapter's weights have gradients.

    With `bf16` the frozen weights become bfloat16; the adapter's are float32 in any case.

    Raises UserError where peft is not installed, or no layer's name ends as `targets` say.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("[lora] needs peft: pip install 'cogview3[train]'") from None

    names = [name for name, _ in unet.named_modules()]
    for target in settings.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(
                f"lora.targets: no layer's name ends in {target!r}; try to_q, to_k, to_v, to_out.0, proj_in"
            )
    unet.requires_grad_(False)
    for parameter in unet.parameters() if bf16 else ():
        parameter.data = parameter.data.bfloat16()
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,  # type: ignore[arg-type]  # peft divides it by the rank
        target_modules=list(settings.targets),
        lora_dropout=settings.dropout,
    )
    unet.add_adapter(config, adapter_name=ADAPTER)
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def frozen_fingerprint(unet: UNet2DConditionModel) -> str:
    """Hash of names, shapes and the first numbers of the frozen weights, in bfloat16, which any precision agrees on."""
    digest = hashlib.sha256()
    for name, parameter in unet.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().flatten()[:16].bfloat16().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_adapter(unet: UNet2DConditionModel, component: str, folder: Path) -> None:
    """Write the adapter as `pytorch_lora_weights.safetensors`, names beginning with `component`, "unet" or alike."""
    from peft import get_peft_model_state_dict

    RelayLoraMixin.save_lora_weights(
        folder,
        **{f"{component}_lora_layers": get_peft_model_state_dict(unet, adapter_name=ADAPTER)},
        **{f"{component}_lora_adapter_metadata": unet.peft_config[ADAPTER].to_dict()},
    )
