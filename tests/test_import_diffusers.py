"""Which network and which files a folder of diffusers means, and what its configurations say. No PyTorch needed."""

import json
import pickle
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import ml_dtypes
import numpy as np
import pytest
from safetensors.flax import save_file

from enkg_ppl.networks._adm_unet import ADMUNet
from enkg_ppl.priors._importers import import_diffusers, import_edm
from enkg_ppl.priors._importers._diffusers import _network_config, _preconditioning, _sources
from enkg_ppl.priors.preconditioning import EDM, VP, Discrete

FILE = "diffusion_pytorch_model"
CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 4,
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "block_out_channels": [4],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "add_attention": False,
}
# What diffusers' EMAModel.save_pretrained adds.
AVERAGE = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 7, "power": 0.75}


@pytest.fixture(scope="module")
def shapes():
    """Names and shapes of the tensors of a `UNet2DModel` with `CONFIG`."""
    network = eqx.filter_eval_shape(ADMUNet, **_network_config(CONFIG, Path(), None)[0], key=jr.key(0))
    sources = _sources(network, {"down": [False], "up": [False]})
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(network):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            layer, _, kind = jax.tree_util.keystr(path).rpartition(".")
            shape = leaf.shape if len(leaf.shape) < 4 else (*leaf.shape[:1:-1], *leaf.shape[:2])
            found[f"{sources[layer].names[0]}.{kind}"] = shape
    return found


@pytest.fixture
def folder(tmp_path, shapes):
    """``save(where, value, ...)`` writes a network whose tensors all hold `value`, and a scheduler beside it."""

    def save(where=".", value=1.0, *, files=(FILE + ".safetensors",), config=(), dtype=jnp.float32, names=None):
        place = tmp_path / where
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps({**CONFIG, **dict(config)}))
        (tmp_path / "scheduler").mkdir(exist_ok=True)
        (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
        for file in files:
            save_file({n: jnp.full(shapes[n], value, dtype) for n in names or shapes}, place / file)
        return tmp_path

    return save


def value_of(prior):
    leaves = jax.tree.leaves(eqx.filter(prior.network, eqx.is_inexact_array))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    values = {float(leaf.ravel()[0]) for leaf in leaves if leaf.ndim == 4}
    assert len(values) == 1
    return values.pop()


# -- which network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("averaged", ["unet_ema", "ema_model", "EMA-unet"])
def test_the_averaged_network_is_taken(folder, averaged):
    root = folder(averaged, 2.0, config=AVERAGE)
    assert value_of(import_diffusers(root)) == 2.0, "alone"
    folder("unet", 1.0)
    prior = import_diffusers(root)
    assert value_of(prior) == 2.0
    assert prior.record["weights"] == f"{averaged}/{FILE}.safetensors"
    assert value_of(import_diffusers(root, subfolder="unet")) == 1.0
    assert value_of(import_diffusers(root / "unet")) == 1.0


def test_an_average_below_a_network(folder):
    folder(".", 1.0)
    assert value_of(import_diffusers(folder("unet_ema", 2.0))) == 2.0


def test_several_networks_are_to_be_chosen_from(folder):
    folder("unet_ema_999", 1.0)
    root = folder("unet_ema_9999", 2.0)
    with pytest.raises(ValueError, match="several networks, unet_ema_999, unet_ema_9999: choose one with subfolder="):
        import_diffusers(root)
    with pytest.raises(FileNotFoundError, match="the networks in .* are unet_ema_999, unet_ema_9999"):
        import_diffusers(root, subfolder="unet")


def index_of(**parts):
    return json.dumps({"_class_name": "P", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["d", "S"], **parts})


PARTS = {
    "vqvae": (["diffusers", "VQModel"], r"vqvae \(VQModel\)"),
    "vae": (["diffusers", "AutoencoderKL"], r"vae \(AutoencoderKL\)"),
    "text_encoder": (["transformers", "CLIPTextModel"], r"text_encoder \(CLIPTextModel\)"),
    "low_res_scheduler": (["diffusers", "DDPMScheduler"], r"low_res_scheduler \(DDPMScheduler\)"),
}


@pytest.mark.parametrize("name", PARTS)
def test_networks_of_latents_and_with_conditions_are_refused(folder, name):
    (library, kind), message = PARTS[name]
    root = folder("unet")
    (root / "model_index.json").write_text(index_of(**{name: [library, kind]}))
    for where in (root, root / "unet"):
        with pytest.raises(ValueError, match=f"is a pipeline with {message} beside the network"):
            import_diffusers(where)
    (root / "model_index.json").unlink()  # by what lies in the folder
    (root / name).mkdir()
    (root / name / "config.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(ValueError, match=message):
        import_diffusers(root)


def test_pipelines_of_images_are_read(folder):
    root = folder("unet")
    (root / "model_index.json").write_text(index_of(safety_checker=[None, None], requires_safety_checker=False))
    assert value_of(import_diffusers(root)) == 1.0


# -- which files ----------------------------------------------------------------------------------------------------


def test_the_finest_precision_is_taken(folder):
    third = {"value": 1 / 3}
    for dtype, name in ((jnp.bfloat16, "bf16"), (jnp.float16, "fp16"), (jnp.float32, "")):
        file = f"{FILE}.{name}.safetensors".replace("..", ".")
        prior = import_diffusers(folder(**third, files=[file], dtype=dtype))
        assert value_of(prior) == np.float32(np.asarray(1 / 3, dtype))
        assert prior.record["weights"] == file
    rounded = import_diffusers(folder(), variant="bf16")
    assert value_of(rounded) == np.float32(np.asarray(1 / 3, ml_dtypes.bfloat16))
    root = folder(value=3.0, files=[f"{FILE}.non_ema.safetensors"])
    assert value_of(import_diffusers(root, variant="")) == 1.0
    assert value_of(import_diffusers(folder())) == 1.0
    assert value_of(import_diffusers(folder(value=4.0, files=[f"{FILE}.ema.safetensors"]))) == 4.0
    with pytest.raises(FileNotFoundError, match="no variant 'fp8' in .* variants '' .*, 'bf16', 'ema', 'fp16'"):
        import_diffusers(root, variant="fp8")


def pieces(folder, shapes, index=f"{FILE}.safetensors.index.json", stem=FILE):
    names = sorted(shapes)
    half = {0: names[::2], 1: names[1::2]}
    files = {i: f"{stem}-0000{i + 1}-of-00002.safetensors" for i in half}
    for i, part in half.items():
        folder(files=[files[i]], names=part, value=i + 1.0, dtype=jnp.float16)
    places = {name: files[i] for i, part in half.items() for name in part}
    root = folder(files=[])
    (root / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return root, files, places, names


@pytest.mark.parametrize(
    ("index", "stem"),
    [(f"{FILE}.safetensors.index.json", FILE), (f"{FILE}.safetensors.index.fp16.json", FILE + ".fp16")],
)
def test_pieces_with_an_index(folder, shapes, index, stem):
    root, files, places, names = pieces(folder, shapes, index, stem)
    prior = import_diffusers(root)
    assert prior.record["weights"] == index
    for layer, name in ((prior.network.norm.weight, "conv_norm_out.weight"), (prior.network.out.bias, "conv_out.bias")):
        assert float(layer[0]) == 1.0 + names.index(name) % 2
    (root / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{files[1]}, which {index} lists: fetch it too"):
        import_diffusers(root)
    (root / index).write_text(json.dumps({"weight_map": dict.fromkeys(places, files[0])}))
    with pytest.raises(ValueError, match=f"has no tensor {names[1]}, which {index} says it holds"):
        import_diffusers(root)
    (root / index).write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ValueError, match="a file outside its folder"):
        import_diffusers(root)
    (root / index).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {FILE}.safetensors.index.json in .* pieces such as {stem}-00001"):
        import_diffusers(root)


def test_weights_that_are_not_there_or_whole_numbers(folder):
    root = folder(files=[])
    (root / f"{FILE}.msgpack").write_text("")
    with pytest.raises(FileNotFoundError, match=f"no {FILE}.safetensors .* only config.json, {FILE}.msgpack"):
        import_diffusers(root)
    for name in ("a", "b"):
        folder(files=[f"{FILE}.{name}.safetensors"])
    with pytest.raises(ValueError, match="has the variants 'a', 'b': choose one with variant="):
        import_diffusers(root)
    with pytest.raises(ValueError, match=r"Tensors of whole numbers: .* \(int8\)"):
        import_diffusers(folder(dtype=jnp.int8))


# -- settings of the network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero_conv": 3}, "zero_conv=3, which is not known here"),
        ({"quantization_config": {"bits": 8}}, "quantization_config="),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift='ada_group'"),
        ({"norm_num_groups": None}, "norm_num_groups=None"),
        ({"in_channels": 2}, "in_channels=2 and out_channels=1: .*superresolution"),
        ({"out_channels": 3}, "1 channels in and 3 out"),
    ],
)
def test_settings_of_a_network_that_are_refused(folder, change, message):
    with pytest.raises(ValueError, match=message):
        import_diffusers(folder(config=change))


def test_settings_that_change_nothing(folder):
    known = {**AVERAGE, "dropout": 0.1, "num_train_timesteps": 1000, "_name_or_path": "x", "new_switch": False}
    assert value_of(import_diffusers(folder(config=known))) == 1.0


# -- schedulers -----------------------------------------------------------------------------------------------------

LINEAR = np.linspace
SCALED = lambda a, b, n: np.linspace(a**0.5, b**0.5, n) ** 2  # noqa: E731
COSINE = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
# Class by class, what a configuration without betas means: diffusers 0.42.1.
DEFAULT_BETAS = {
    **dict.fromkeys(
        [
            *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "PNDM", "RePaint", "SASolver"),
            *("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep", "UniPCMultistep"),
            *("DEISMultistep", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete"),
        ],
        LINEAR(1e-4, 0.02, 1000),
    ),
    **dict.fromkeys(
        ["HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"], LINEAR(0.00085, 0.012, 1000)
    ),
    **dict.fromkeys(["LCM", "TCD"], SCALED(0.00085, 0.012, 1000)),
    "UnCLIP": np.minimum(1 - COSINE[1:] / COSINE[:-1], 0.999),
}


def read(tmp_path, **config):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config))
    return _preconditioning(path)


@pytest.mark.filterwarnings("ignore:.*for which networks are distilled")
@pytest.mark.parametrize("kind", DEFAULT_BETAS)
def test_schedulers_without_betas(tmp_path, kind):
    got = read(tmp_path, _class_name=f"{kind}Scheduler")
    np.testing.assert_allclose(got.alphas_cumprod, np.cumprod(1 - DEFAULT_BETAS[kind]), rtol=1e-12)


def test_sigma_max_of_heun_is_that_of_diffusers(tmp_path):
    assert read(tmp_path, _class_name="HeunDiscreteScheduler").sigma_max == pytest.approx(25.146, abs=0.001)
    assert read(tmp_path, _class_name="DDPMScheduler").sigma_max == pytest.approx(157.4, abs=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"])
def test_schedulers_are_those_of_diffusers(tmp_path, schedule):
    """Every class that knows the schedule, without its other settings, against diffusers itself."""
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    compared = 0
    for kind in DEFAULT_BETAS:
        try:
            theirs = getattr(diffusers, f"{kind}Scheduler")(beta_schedule=schedule)
        except (NotImplementedError, ValueError, ImportError):
            continue
        compared += 1
        ours = read(tmp_path, _class_name=f"{kind}Scheduler", beta_schedule=schedule)
        np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-3, err_msg=kind)
    assert compared > 0


SVD = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
}


def test_continuous_time_steps(tmp_path):
    """The network is told log(sigma) / 4, and predicts v = sqrt(a) eps - sqrt(1 - a) x0 of sqrt(a) x."""
    got = read(tmp_path, **SVD)
    assert (got.sigma_min, got.sigma_max) == (pytest.approx(0.0292, abs=1e-4), pytest.approx(14.61, abs=0.01))
    wider = read(tmp_path, **SVD, sigma_min=0.002, sigma_max=700.0, use_karras_sigmas=True)
    assert (wider.sigma_min, wider.sigma_max) == (0.002, 700.0)
    x0, eps = 0.3, -1.1
    for sigma in (0.01, 1.0, 14.6, 300.0):
        x, a = x0 + sigma * eps, 1 / (1 + sigma**2)
        v = a**0.5 * eps - (1 - a) ** 0.5 * x0
        c = wider.coefficients(jnp.float64(sigma))
        assert c.noise == pytest.approx(0.25 * np.log(sigma))
        assert c.input == pytest.approx(a**0.5)
        assert c.skip * x + c.out * v == pytest.approx(x0, rel=1e-9)
    assert wider.coefficients(jnp.float64(14.614)).noise == pytest.approx(0.6705, abs=1e-4)
    with pytest.raises(ValueError, match=r"timestep_type='continuous' with prediction_type='epsilon' of a Euler"):
        read(tmp_path, **{**SVD, "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="of a DDIMScheduler; only 'continuous'"):
        read(tmp_path, **{**SVD, "_class_name": "DDIMScheduler"})


@pytest.mark.filterwarnings("ignore")
def test_continuous_time_steps_are_those_of_diffusers(tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    settings = {key: value for key, value in SVD.items() if key != "_class_name"}
    scheduler = diffusers.EulerDiscreteScheduler(**settings, sigma_min=0.002, sigma_max=700.0, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    scheduler.save_pretrained(tmp_path)
    ours = _preconditioning(tmp_path / "scheduler_config.json")
    for i, (time, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True)):
        sample, output = torch.full((1,), 0.7), torch.full((1,), -0.4)
        scheduler._step_index = i
        scheduler.is_scale_input_called = True
        expected = scheduler.step(output, time, sample).pred_original_sample.item()
        c = ours.coefficients(jnp.float64(float(sigma)))
        assert c.noise == pytest.approx(float(time), abs=1e-5)
        assert c.skip * 0.7 + c.out * -0.4 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_edm_schedulers(tmp_path, sign):
    prediction = {1: "epsilon", -1: "v_prediction"}[sign]
    got = read(tmp_path, _class_name="EDMEulerScheduler", prediction_type=prediction, sigma_max=50.0)
    assert (got.sigma_min, got.sigma_max) == (0.002, 50.0)
    plain, c = EDM(0.5).coefficients(jnp.float64(3.0)), got.coefficients(jnp.float64(3.0))
    np.testing.assert_allclose(c, [plain.skip, sign * plain.out, plain.input, plain.noise], rtol=1e-12)
    assert EDM(**got.config()).config() == got.config()


def test_an_old_name_of_the_prediction(tmp_path):
    assert read(tmp_path, predict_epsilon=False).prediction == "x0"
    assert read(tmp_path, predict_epsilon=True).prediction == "noise"
    with pytest.raises(ValueError, match="predict_epsilon=False and prediction_type='epsilon': take out the wrong one"):
        read(tmp_path, predict_epsilon=False, prediction_type="epsilon")


def test_entries_that_only_say_how_to_sample(tmp_path):
    """A configuration as diffusers saves it, every entry of several classes, is that of its betas."""
    plain = read(tmp_path, _class_name="DPMSolverMultistepScheduler")
    full = read(
        tmp_path,
        _class_name="DPMSolverMultistepScheduler",
        _diffusers_version="0.42.1",
        algorithm_type="dpmsolver++",
        use_karras_sigmas=True,
        lambda_min_clipped=-1e9,
        timestep_spacing="trailing",
        steps_offset=1,
        flow_shift=1.0,
        clip_sample=True,
        variance_type="learned_range",
    )
    assert full.config() == plain.config()


@pytest.mark.parametrize("kind", ["LCM", "TCD"])
def test_distilled_networks_are_warned_of(tmp_path, kind):
    with pytest.warns(UserWarning, match=f"a {kind}Scheduler, for which networks are distilled"):
        assert isinstance(read(tmp_path, _class_name=f"{kind}Scheduler"), Discrete)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, r"FlowMatchEulerDiscreteScheduler, .*\(flow matching\)"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas .*flow matching"),
        ({"prediction_type": "flow_prediction"}, "flow matching"),
        ({"_class_name": "IPNDMScheduler"}, "told a time between 0 and 1 .* time_scale=1 / num_steps"),
        ({"_class_name": "ScoreSdeVeScheduler"}, r"variance exploding .*: give preconditioning=VE"),
        ({"_class_name": "ScoreSdeVpScheduler"}, r"continuous time: give preconditioning=VP\(beta_max"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "jumps to a sample .* distilled from"),
        ({"_class_name": "HopScheduler"}, "HopScheduler, which is not known here: give the preconditioning"),
        ({"snr_shift_scale": 3.0}, "snr_shift_scale=3.0, which is not known here"),
        ({"timestep_type": "hours"}, "timestep_type='hours'"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "prediction_type='sample'"),
    ],
)
def test_schedulers_that_are_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message) as refusal:
        read(tmp_path, **config)
    assert "scheduler_config.json" in str(refusal.value)


# -- checkpoints of one file ----------------------------------------------------------------------------------------


def chosen(checkpoint, **options):
    """The first number of the network that `import_edm` takes, as its refusal of a network of one tensor tells it."""
    with pytest.raises(ValueError, match=r"names are (\S+)\)") as refusal:
        import_edm(checkpoint, VP(), **options)
    return str(refusal.value).split("names are ")[1].split(")")[0]


def test_the_averaged_entry_is_taken():
    raw, averaged = {"raw": np.zeros(2)}, {"averaged": np.zeros(2)}
    for name in ("ema", "ema_model", "model_ema", "state_dict_ema", "G_ema"):
        assert chosen({"model": raw, name: averaged, "ema_decay": 0.999, "use_ema": True}) == "averaged"
        assert chosen({"model": raw, name: {"module": averaged, "decay": 0.9}}) == "averaged"
        assert chosen({"model": raw, name: averaged}, weights="model") == "raw"
    assert chosen({"model": raw, "optimizer": averaged}) == "raw"
    with pytest.raises(ValueError, match=r"several networks, .'model', 'net'.: choose one with `weights`"):
        import_edm({"model": raw, "net": averaged}, VP())
    with pytest.raises(ValueError, match="several averaged networks, .'ema_9', 'ema_99'.: choose one with `weights`"):
        import_edm({"model": raw, "ema_9": averaged, "ema_99": averaged}, VP())
    with pytest.raises(ValueError, match=r"no tensors with names under 'ema', only decay, shadow_params: .*'model'"):
        import_edm({"model": raw, "ema": {"decay": 0.9, "shadow_params": [np.zeros(2)]}}, VP())


def test_two_networks_below_prefixes():
    anchor = "map_layer0.weight"
    both = {f"model.{anchor}": np.zeros((2, 2)), f"ema_model.{anchor}": np.ones((2, 2))}
    with pytest.raises(ValueError, match="levels enc"):  # one network was chosen, and looked into
        import_edm(both, VP())
    with pytest.raises(ValueError, match=r"holds 2 networks, below 'model.', 'net.': pass the state dict of one"):
        import_edm({f"model.{anchor}": np.zeros(2), f"net.{anchor}": np.zeros(2)}, VP())


class Settings:
    """As training codes keep beside the tensors."""


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_classes_in_a_pickle_are_named(tmp_path, protocol, zipped):
    from enkg_ppl.priors._importers._read import pickled_classes

    path = tmp_path / "a.pt"
    content = pickle.dumps({"ema": [1.5, np.float64(2.0), "text"], "args": Settings(), "again": Settings()}, protocol)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        path.write_bytes(content)
    found = pickled_classes(path)
    assert f"{__name__}.Settings" in found
    assert any(name.startswith("numpy") and name.endswith("scalar") for name in found)
    path.write_bytes(content[: len(content) // 3])
    assert f"{__name__}.Settings" not in pickled_classes(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [True, False])
def test_objects_in_a_file_of_torch(tmp_path, new):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    content = {"ema": {"a": torch.zeros(2)}, "args": Settings(), "loss": np.float64(0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=rf"also holds objects of {__name__}.Settings, numpy") as refusal:
        import_edm(path, VP())
    assert "\x1b" not in str(refusal.value)
    for damaged in (path.read_bytes()[:40], b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"it is damaged, or no file of torch.save \(\w.*\)") as refusal:
            import_edm(path, VP())
        assert "\x1b" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore")
def test_pieces_of_torch(folder, shapes):
    torch = pytest.importorskip("torch")
    names, root = sorted(shapes), folder(files=[])
    places = {name: f"{FILE}-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        held = {n: torch.full(shapes[n], 5.0, dtype=torch.bfloat16) for n in names if places[n] == file}
        torch.save(held, root / file)
    (root / f"{FILE}.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert value_of(import_diffusers(root)) == 5.0
