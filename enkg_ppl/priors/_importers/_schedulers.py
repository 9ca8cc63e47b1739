"""What the configuration of a diffusers scheduler says about the network that was saved beside it.

A scheduler is a way of sampling. All that matters here is what the network was trained for: the noise levels of its
steps, what it predicts, and what it is told about the noise. An entry that a configuration leaves out means the default
of its class.

Source: signatures and code of diffusers 0.42.1, diffusers/schedulers.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from enkg_ppl.priors.preconditioning import EDM, Discrete, Preconditioning

STEPS = 1000  # num_train_timesteps, of every class
PREDICTIONS: dict[str, Any] = {
    "epsilon": "noise",
    "v_prediction": "v",
    "sample": "x0",
    "original_sample": "x0",  # a second name in EulerDiscreteScheduler
}


class Defaults(NamedTuple):
    beta_start: float
    beta_end: float
    beta_schedule: str


DDPM = Defaults(1e-4, 0.02, "linear")
KARRAS = Defaults(0.00085, 0.012, "linear")
LATENT = Defaults(0.00085, 0.012, "scaled_linear")
# Their betas are those of a discrete variance-preserving process, whatever their way of sampling.
BETA_SCHEDULERS = {
    "DDPMScheduler": DDPM,
    "DDPMParallelScheduler": DDPM,
    "DDIMScheduler": DDPM,
    "DDIMParallelScheduler": DDPM,
    "DDIMInverseScheduler": DDPM,
    "PNDMScheduler": DDPM,
    "RePaintScheduler": DDPM,
    "DPMSolverMultistepScheduler": DDPM,
    "DPMSolverMultistepInverseScheduler": DDPM,
    "DPMSolverSinglestepScheduler": DDPM,
    "UniPCMultistepScheduler": DDPM,
    "DEISMultistepScheduler": DDPM,
    "SASolverScheduler": DDPM,
    "LMSDiscreteScheduler": DDPM,
    "EulerDiscreteScheduler": DDPM,
    "EulerAncestralDiscreteScheduler": DDPM,
    "HeunDiscreteScheduler": KARRAS,
    "KDPM2DiscreteScheduler": KARRAS,
    "KDPM2AncestralDiscreteScheduler": KARRAS,
    "DPMSolverSDEScheduler": KARRAS,
    "LCMScheduler": LATENT,
    "TCDScheduler": LATENT,
    "UnCLIPScheduler": Defaults(1e-4, 0.02, "squaredcos_cap_v2"),
}
DISTILLED = ("LCMScheduler", "TCDScheduler")
# The preconditioning of Karras et al. 2022 with its noise levels.
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
EDM_DEFAULTS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
# Why other classes cannot be read, and what to do.
GIVE = "give preconditioning="
FLOW = (
    "whose network predicts the velocity of a straight path from noise to data (flow matching)",
    "it cannot be imported",
)
CONSISTENCY = (
    "whose network jumps to a sample and does not predict the mean of the clean image",
    "import the network that it was distilled from",
)
TOKENS = ("whose network is over discrete tokens", "it cannot be imported")
OTHERS = {
    "ScoreSdeVeScheduler": ("which is variance exploding and has no betas", GIVE + "VE(sigma_min, sigma_max)"),
    "KarrasVeScheduler": ("which is variance exploding and has no betas", GIVE + "VE(sigma_min, sigma_max)"),
    "ScoreSdeVpScheduler": ("which has continuous time", GIVE + "VP(beta_max - beta_min, beta_min)"),
    "IPNDMScheduler": (
        "whose network is told a time between 0 and 1 and no step's number",
        GIVE + "Discrete(alphas_cumprod, time_scale=1 / num_steps)",
    ),
    "CosineDPMSolverMultistepScheduler": (
        "whose network is told the angle of the noise level and no step's number",
        "write that as a Preconditioning of your own",
    ),
    "DDPMWuerstchenScheduler": ("whose network is told a share of the noise", "it cannot be imported"),
    "CogVideoXDDIMScheduler": (
        "which shifts the signal-to-noise ratio of its betas",
        GIVE + "Discrete(alphas_cumprod)",
    ),
    "CogVideoXDPMScheduler": ("which shifts the signal-to-noise ratio of its betas", GIVE + "Discrete(alphas_cumprod)"),
    "CMStochasticIterativeScheduler": CONSISTENCY,
    "ConsistencyDecoderScheduler": CONSISTENCY,
    "SCMScheduler": CONSISTENCY,
    "AmusedScheduler": TOKENS,
    "VQDiffusionScheduler": TOKENS,
    "HeliosScheduler": FLOW,
    "HeliosDMDScheduler": FLOW,
    "LTXEulerAncestralRFScheduler": FLOW,
    "FlowMapEulerDiscreteScheduler": FLOW,
    "FlowMatchEulerDiscreteScheduler": FLOW,
    "FlowMatchHeunDiscreteScheduler": FLOW,
    "FlowMatchLCMScheduler": FLOW,
}
# Entries that are read here ...
READ = {
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "predict_epsilon",
    "rescale_betas_zero_snr",
    "timestep_type",
    "use_flow_sigmas",
    "sigma_min",
    "sigma_max",
    "sigma_data",
}
# ... and those that only say how to sample: which of the steps are taken, and what is done to a prediction. A network
# means the same with any value of them.
SAMPLING = {
    *("variance_type", "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio"),
    *("sample_max_value", "timestep_spacing", "steps_offset", "set_alpha_to_one", "set_alpha_to_zero"),
    *("skip_prk_steps", "solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "final_sigmas_type"),
    *("lambda_min_clipped", "predict_x0", "disable_corrector", "solver_p", "interpolation_type", "clip_denoised"),
    *("original_inference_steps", "timestep_scaling", "eta", "tau_func", "predictor_order", "corrector_order"),
    *("noise_sampler_seed", "sigma_schedule", "rho", "tensor_format", "timestep_values"),
    # Of flow matching, without which they do nothing.
    *("flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal"),
}


def read_json(path: Path, what: str) -> dict:
    """The configuration of a `what`, as save_pretrained wrote it."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give the folder that save_pretrained of a {what} wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold the configuration of a {what} and holds a {type(content).__name__}")
    return content


def refuse_unknown(config: dict, known: set[str], path: Path, remedy: str) -> None:
    """Refuse an entry whose meaning is not known, unless it is switched off."""
    for name, value in config.items():
        if name not in known and not name.startswith("_") and value is not None and value is not False:
            raise ValueError(
                f"{path} has {name}={value!r}, which is not known here and may change what the network means: {remedy}"
            )


def scheduler_preconditioning(path: Path) -> Preconditioning:
    """What the network beside this scheduler's configuration was trained for.

    Raises `ValueError` where that cannot be told, naming the entry; warns of distilled networks.
    """
    config = read_json(path, "scheduler")
    kind = config.get("_class_name", "DDPMScheduler")
    if kind in OTHERS:
        reason, remedy = OTHERS[kind]
        raise ValueError(f"{path} is the configuration of a {kind}, {reason}: {remedy}")
    if kind not in BETA_SCHEDULERS and kind not in EDM_SCHEDULERS:
        raise ValueError(
            f"{path} is the configuration of a {kind}, which is not known here: give the preconditioning of the "
            "training"
        )
    refuse_unknown(
        config,
        READ | SAMPLING,
        path,
        "give the preconditioning of the training, such as Discrete(alphas_cumprod, prediction)",
    )
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        raise ValueError(f"{path} has use_flow_sigmas or prediction_type='flow_prediction', {FLOW[0]}: {FLOW[1]}")
    if kind in EDM_SCHEDULERS:
        return _edm(config, path)
    prediction = _prediction(config, path)
    if config.get("rescale_betas_zero_snr", False):
        raise ValueError(
            f"{path} has rescale_betas_zero_snr, whose last noise level is infinite: give "
            "preconditioning=Discrete(alphas_cumprod, prediction) without that step"
        )
    betas = _betas(config, BETA_SCHEDULERS[kind], path)
    if config.get("timestep_type", "discrete") != "discrete":
        return _continuous(config, prediction, betas, path)
    if kind in DISTILLED:
        warnings.warn(
            f"{path} is the configuration of a {kind}, for which networks are distilled: such a network jumps to a "
            "sample and does not predict the mean of the clean image, so posteriors from it would be wrong; import the "
            "network that it was distilled from",
            stacklevel=3,
        )
    return Discrete(np.cumprod(1 - betas), PREDICTIONS[prediction])


def _prediction(config: dict, path: Path) -> str:
    """With the entry of diffusers before 0.11 that said the same."""
    old = config.get("predict_epsilon")
    meant = None if old is None else "epsilon" if old else "sample"
    prediction = config.get("prediction_type", meant or "epsilon")
    if meant not in (None, prediction):
        raise ValueError(f"{path} has predict_epsilon={old} and prediction_type={prediction!r}: take out the wrong one")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{path} has prediction_type={prediction!r}; one of {sorted(PREDICTIONS)} can be imported")
    return prediction


def _edm(config: dict, path: Path) -> EDM:
    """``log(sigma) / 4`` is told; "epsilon" names the target of Karras et al. itself, "v_prediction" its negative."""
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"{path} has prediction_type={prediction!r}; 'epsilon' and 'v_prediction' can be imported")
    given = {name: config.get(name) for name in EDM_DEFAULTS}
    levels = {name: float(EDM_DEFAULTS[name] if value is None else value) for name, value in given.items()}
    return EDM(negated=prediction == "v_prediction", **levels)


def _continuous(config: dict, prediction: str, betas: np.ndarray, path: Path) -> EDM:
    """``timestep_type="continuous"``: the network is told ``log(sigma) / 4`` of noise levels that may pass the betas'.

    The rest of v-prediction is the preconditioning of Karras et al. at ``sigma_data=1`` but for the sign.
    """
    kind, scheduler = config["timestep_type"], config.get("_class_name")
    if (kind, prediction, scheduler) != ("continuous", "v_prediction", "EulerDiscreteScheduler"):
        raise ValueError(
            f"{path} has timestep_type={kind!r} with prediction_type={prediction!r} of a {scheduler}; only "
            "'continuous' with 'v_prediction' of an EulerDiscreteScheduler can be imported (diffusers itself reads "
            "others as 'discrete'): write 'discrete' where the network is told the step's number, else give the "
            "preconditioning of the training"
        )
    alphas = np.cumprod(1 - betas)
    first, last = np.sqrt((1 - alphas[[0, -1]]) / alphas[[0, -1]])
    low, high = config.get("sigma_min"), config.get("sigma_max")
    return EDM(
        1.0,
        negated=True,
        sigma_min=float(first if low is None else low),
        sigma_max=float(last if high is None else high),
    )


def _from_alpha_bar(alpha_bar: Callable[[np.ndarray], np.ndarray], steps: int) -> np.ndarray:
    values = alpha_bar(np.arange(steps + 1) / steps)
    return np.minimum(1 - values[1:] / values[:-1], 0.999)


def _laplace(t: np.ndarray) -> np.ndarray:
    snr = np.exp(-0.5 * np.copysign(1.0, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6))
    return np.sqrt(snr / (1 + snr))


BETAS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": np.linspace,
    "scaled_linear": lambda first, last, steps: np.linspace(first**0.5, last**0.5, steps) ** 2,
    "sigmoid": lambda first, last, steps: first + (last - first) / (1 + np.exp(-np.linspace(-6, 6, steps))),
    # Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17
    "squaredcos_cap_v2": lambda first, last, steps: _from_alpha_bar(
        lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2, steps
    ),
    "laplace": lambda first, last, steps: _from_alpha_bar(_laplace, steps),
    "exp": lambda first, last, steps: _from_alpha_bar(lambda t: np.exp(-12 * t), steps),
}


def _betas(config: dict, default: Defaults, path: Path) -> np.ndarray:
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], float)
    given = {name: config.get(name, value) for name, value in default._asdict().items()}
    schedule = given["beta_schedule"]
    if schedule not in BETAS:
        raise ValueError(f"{path} has beta_schedule={schedule!r}; one of {sorted(BETAS)} can be imported")
    steps = config.get("num_train_timesteps", STEPS)
    return BETAS[schedule](given["beta_start"], given["beta_end"], steps)
