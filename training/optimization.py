"""The optimizer: AdamW with one rate and decay for the core and one for readouts and shifters."""

from dataclasses import dataclass

import torch
from torch.optim import AdamW

from models.encoder import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW, and what is done to gradients and parameters around it. Defaults: factorized baseline.

    Attributes:
        core_lr: highest learning rate of the core.
        readout_lr: the same for readouts and shifters; None takes the core's.
        core_weight_decay: decoupled weight decay of all core parameters, biases and norms included.
        readout_weight_decay: the same for readouts and shifters; None takes the core's.
        beta1: decay of the gradient's running mean.
        beta2: decay of the squared gradient's running mean.
        eps: added to the denominator.
        clip_norm: largest norm of the whole gradient; None does not clip (no system does).
        ema_decay: decay of the exponential moving average of parameters and buffers that is scored and
            kept (DwiseNeuro: 0.999); None scores and keeps the parameters themselves.
    """

    core_lr: float = 0.005
    readout_lr: float | None = None
    core_weight_decay: float = 0.01
    readout_weight_decay: float | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        """Refuse rates that cannot train."""
        for name in ("core_lr", "readout_lr", "eps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, but must be above 0")
        for name in ("core_weight_decay", "readout_weight_decay"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}, but must be at least 0")
        for name in ("beta1", "beta2", "ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 0 and less than 1")


def make_optimizer(encoder: Encoder, config: OptimizerConfig) -> AdamW:
    """Return AdamW over the core's and the sessions' parameters; ``group["max_lr"]`` keeps the full rate."""
    readout_lr = config.core_lr if config.readout_lr is None else config.readout_lr
    decay = config.core_weight_decay
    readout_decay = decay if config.readout_weight_decay is None else config.readout_weight_decay
    groups = [
        {"params": list(encoder.core_parameters()), "lr": config.core_lr, "weight_decay": decay},
        {"params": list(encoder.session_parameters()), "lr": readout_lr, "weight_decay": readout_decay},
    ]
    return AdamW(
        [group | {"max_lr": group["lr"]} for group in groups],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        # One kernel over all parameters; since torch 2.9 on CPU, too.
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to a share of its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["max_lr"] * factor


def clip_gradients(encoder: Encoder, config: OptimizerConfig) -> None:
    """Scale the gradient down to the configured norm, if there is one."""
    if config.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), config.clip_norm, foreach=True)
