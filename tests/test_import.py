"""Imported networks equal their PyTorch originals; wrong files are refused in a sentence."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl.priors._importers import import_adm, import_ddpm, import_diffusers, import_edm
from enkg_ppl.priors.preconditioning import EDM, VE, VP, Discrete

TOLERANCE = 1e-4  # of outputs of order 1, in 32 bits


def compiled(function, module, *args):
    """``function(module, *args)``; compiling takes longer than running here, hence without optimisation."""
    arrays, static = eqx.partition(module, eqx.is_array)

    def call(arrays, *args):
        return function(eqx.combine(arrays, static), *args)

    return jax.jit(call, compiler_options={"xla_backend_optimization_level": 0})(arrays, *args)


def denoise_all(prior, x, sigma):
    return compiled(lambda prior, x, sigma: jax.vmap(lambda row: prior.denoise(row, sigma))(x), prior, x, sigma)


def network_all(network, x, noise):
    return compiled(lambda network, x, noise: jax.vmap(network)(x, noise), network, x, noise)


def randomised(network, torch, seed=0):
    """Parameters of order 1 / sqrt(inputs), none of them zero, so that no part of the network is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else 0.2 * noise + float("weight" in name))
    return network.eval()


def events(torch, shape, batch=2):
    generator = torch.Generator().manual_seed(7)
    return torch.randn((batch, *shape), generator=generator)


def assert_same(prior, network, torch, noise=(0.3, 41.0)):
    """Network against network."""
    x = events(torch, prior.event_shape)
    noise = torch.tensor(noise)
    with torch.no_grad():
        out = network(x, noise)
    expected = np.asarray(out if torch.is_tensor(out) else out.sample)[:, : x.shape[1]]
    got = np.asarray(network_all(prior.network, jnp.asarray(x.numpy()), jnp.asarray(noise.numpy())))
    assert got.dtype == np.float32
    assert 0.1 < expected.std() < 10
    np.testing.assert_allclose(got, expected, atol=TOLERANCE * max(1, np.abs(expected).max()))


SONG = {
    "ddpmpp": {"mults": (1, 2), "blocks": 1, "attention": (8,)},
    "ncsnpp": {
        "mults": (1, 2),
        "blocks": 1,
        "attention": (16,),
        "features": "fourier",
        "feature_mult": 2,
        "encoder": "residual",
        "taps": (1, 3, 3, 1),
    },
    "skips": {"mults": (1, 1, 2), "blocks": 1, "attention": (), "encoder": "skip", "decoder": "skip", "augment": 9},
    "skips with a filter": {
        "mults": (1, 1),
        "blocks": 1,
        "attention": (),
        "encoder": "skip",
        "decoder": "skip",
        "taps": (1, 2, 2, 1),
    },
}


@pytest.mark.parametrize("kind", SONG)
def test_song_unet(kind):
    torch = pytest.importorskip("torch")
    from torch_reference.edm import Precond, SongUNet

    network = randomised(SongUNet(16, 2, width=16, **SONG[kind]), torch)
    prior = import_edm({"ema": Precond(network).state_dict(), "step": 3}, VP())
    assert_same(prior, network, torch, (0.3, 1.1))


@pytest.mark.parametrize("augment", [0, 9])
def test_dhariwal_unet(augment):
    torch = pytest.importorskip("torch")
    from torch_reference.edm import DhariwalUNet

    network = randomised(DhariwalUNet(16, 1, width=64, mults=(1, 2), blocks=1, attention=(8,), augment=augment), torch)
    assert_same(import_edm(network.state_dict(), EDM()), network, torch, (-0.4, 0.7))


ADM = {
    "ffhq": {"resample": "block", "head": 16, "outputs": 6, "attention_factors": (2,), "blocks": 1},
    "improved": {
        "resample": "conv",
        "heads": 4,
        "outputs": 3,
        "attention_factors": (1, 2),
        "blocks": 2,
        "scale_shift": False,
    },
    "new order": {
        "resample": "plain",
        "heads": 2,
        "outputs": 3,
        "attention_factors": (),
        "blocks": 1,
        "new_order": True,
    },
}


@pytest.mark.parametrize("kind", ADM)
def test_adm_unet(kind):
    torch = pytest.importorskip("torch")
    from torch_reference.adm import UNetModel

    network = randomised(UNetModel(3, width=32, mults=(1, 2), **ADM[kind]), torch)
    settings = ADM[kind]
    prior = import_adm(
        {"ema": network.state_dict()},
        VP(),
        (3, 8, 8),
        head_channels=settings.get("head"),
        num_heads=settings.get("heads"),
        attention_order="qkv first" if settings.get("new_order") else "heads first",
    )
    assert_same(prior, network, torch)


DIFFUSERS = {
    "ddpm": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 8,
    },
    "cifar": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "scale and shift": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "resnet_time_scale_shift": "scale_shift",
        "center_input_sample": True,
        "mid_block_scale_factor": 1.5,
        "time_embedding_dim": 24,
    },
    "no attention": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "add_attention": False,
    },
}
UNET = {
    "sample_size": (8, 16),
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (16, 32),
    "norm_num_groups": 4,
}


def saved_unet(folder, torch, diffusers, kind, scheduler=None, **save):
    network = randomised(diffusers.UNet2DModel(**UNET, **DIFFUSERS[kind]), torch)
    network.save_pretrained(folder, **save)
    (scheduler or diffusers.DDPMScheduler()).save_pretrained(folder / "scheduler")
    return network


@pytest.fixture(scope="session")
def diffusers():
    """diffusers warns of its own deprecations when it is loaded."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", DIFFUSERS)
def test_diffusers_unet(kind, tmp_path, diffusers):
    torch = pytest.importorskip("torch")
    network = saved_unet(tmp_path, torch, diffusers, kind)
    assert_same(import_diffusers(tmp_path), network, torch, (3.0, 741.0))


@pytest.mark.parametrize(("wrap", "preconditioning"), [("EDMPrecond", EDM()), ("VPPrecond", VP()), ("VEPrecond", VE())])
def test_whole_denoiser(wrap, preconditioning):
    """D(x, sigma) of the prior, flattened, against the preconditioned PyTorch network, over the noise levels."""
    torch = pytest.importorskip("torch")
    import torch_reference.edm as reference

    network = randomised(reference.SongUNet(16, 2, width=16, **SONG["ddpmpp"]), torch)
    original = getattr(reference, wrap)(network)
    prior = import_edm({f"module.{k}": v for k, v in original.state_dict().items()}, preconditioning)
    for sigma in (0.05, 1.0, 20.0):
        x = events(torch, (2, 16, 16)) * (1 + sigma)
        with torch.no_grad():
            expected = original(x, sigma).numpy().reshape(2, -1)
        got = denoise_all(prior, jnp.asarray(x.numpy().reshape(2, -1)), jnp.float32(sigma))
        np.testing.assert_allclose(got, expected, atol=TOLERANCE * (1 + sigma))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_diffusers_schedulers(schedule, prediction, tmp_path, diffusers):
    """The clean image that the scheduler reconstructs from a prediction is the denoiser's."""
    torch = pytest.importorskip("torch")
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=50,
        beta_schedule=schedule,
        beta_start=1e-3,
        beta_end=0.05,
        prediction_type=prediction,
        clip_sample=False,
    )
    scheduler.save_pretrained(tmp_path)
    from enkg_ppl.priors._importers._diffusers import _preconditioning

    preconditioning = _preconditioning(tmp_path / "scheduler_config.json")
    for step in (0, 17, 48):
        alpha = float(scheduler.alphas_cumprod[step])
        x_t = torch.full((1, 1, 1, 1), 0.7)
        prediction_value = torch.full((1, 1, 1, 1), -0.4)
        expected = scheduler.step(prediction_value, step, x_t).pred_original_sample.item()
        c = preconditioning.coefficients(jnp.sqrt((1 - alpha) / alpha))
        assert c.noise == pytest.approx(step, abs=1e-3)
        assert c.input * 0.7 / alpha**0.5 == pytest.approx(0.7, rel=1e-5)
        assert c.skip * 0.7 / alpha**0.5 + c.out * -0.4 == pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_diffusers_pipeline_folder_and_old_names(tmp_path, diffusers):
    """A pipeline's layout, and attention named as before diffusers 0.12."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    network = saved_unet(tmp_path / "unet", torch, diffusers, "ddpm")
    (tmp_path / "unet" / "scheduler").rename(tmp_path / "scheduler")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(file).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        tensors[name] = value
    save_file(tensors, file)
    prior = import_diffusers(tmp_path)
    expected = network.mid_block.attentions[0].to_k.weight.detach().numpy()
    got = prior.network.decoder_levels[0].enter[0].attention.qkv.weight[32:64]
    np.testing.assert_array_equal(got, expected)
    assert isinstance(prior.preconditioning, Discrete)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "SkipDownBlock2D"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"num_class_embeds": 10}, "num_class_embeds=10"),
        ({"block_out_channels": [16]}, "as many"),
        ({"sample_size": None}, "give shape="),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups=2"),
    ],
)
def test_diffusers_settings_that_are_refused(change, message, tmp_path):
    kinds = {key: list(value) if isinstance(value, tuple) else value for key, value in DIFFUSERS["ddpm"].items()}
    config = {"_class_name": "UNet2DModel", **UNET, **kinds, **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        import_diffusers(tmp_path)


def test_diffusers_folders_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        import_diffusers(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        import_diffusers(tmp_path)
    config = {"_class_name": "UNet2DModel", **UNET, **DIFFUSERS["ddpm"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="scheduler_config.json"):
        import_diffusers(tmp_path)
    scheduler = tmp_path / "scheduler_config.json"
    for content, message in (
        ({"_class_name": "KarrasVeScheduler"}, "KarrasVeScheduler"),
        ({"prediction_type": "score"}, "prediction_type='score'"),
        ({"beta_schedule": "cosine"}, "beta_schedule='cosine'"),
        ({"rescale_betas_zero_snr": True}, "infinite"),
    ):
        scheduler.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            import_diffusers(tmp_path)
    scheduler.write_text("{}")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        import_diffusers(tmp_path)


def test_published_settings_are_read_from_the_shapes(tmp_path):
    """The architectures of the checkpoints that EnKG's authors publish, by their settings, through files."""
    torch = pytest.importorskip("torch")
    from torch_reference.adm import UNetModel
    from torch_reference.edm import DhariwalUNet, Precond, SongUNet

    from enkg_ppl.priors._importers._adm import _config
    from enkg_ppl.priors._importers._edm import _dhariwal_config

    def state(make):
        with torch.device("meta"):
            return {key: np.broadcast_to(np.float32(0), tuple(v.shape)) for key, v in make().state_dict().items()}

    fluid = _dhariwal_config(
        state(lambda: DhariwalUNet(128, 1, width=128, mults=(1, 1, 1, 2, 2), blocks=1, attention=(16,))), "a"
    )
    assert fluid["shape"] == (1, 128, 128)
    assert (fluid["channels"], fluid["num_blocks"]) == ((128, 128, 128, 256, 256), 1)
    assert (fluid["attention_resolutions"], fluid["embedding_size"]) == ((16,), 512)

    hole = SongUNet(64, 1, width=128, mults=(1, 2, 2), blocks=1, attention=(16,))
    path = tmp_path / "hole.pt"
    torch.save({"ema": Precond(hole).state_dict(), "step": 4}, path)
    prior = import_edm(path, VP(), location=0.1, scale=7.0, chunk_size=8)
    expected = {
        "shape": [1, 64, 64],
        "width": 128,
        "multipliers": [1, 2, 2],
        "num_blocks": 1,
        "attention_resolutions": [16],
        "padding": "zeros",
        "noise_features": "positional",
        "noise_multiplier": 1,
        "embedding_multiplier": 4,
        "encoder": "standard",
        "decoder": "standard",
        "resample_filter": [1, 1],
    }
    assert {key: prior.network.config()[key] for key in expected} == expected
    assert (float(prior.scale), prior.chunk_size, float(prior.location[5])) == (7.0, 8, pytest.approx(0.1))

    faces = state(
        lambda: UNetModel(3, width=128, mults=(1, 1, 2, 2, 4, 4), blocks=1, outputs=6, attention_factors=(16,), head=64)
    )
    config = _config(faces, "a", (3, 256, 256))
    assert (config["channels"], config["attention_resolutions"]) == ((128, 128, 256, 256, 512, 512), (16,))
    assert (config["out_channels"], config["scale_shift"], config["resample"]) == (6, True, "block")


@pytest.fixture(scope="module")
def song_state():
    pytest.importorskip("torch")
    from torch_reference.edm import SongUNet

    return SongUNet(16, 2, width=16, **SONG["ddpmpp"]).state_dict()


def test_default_location_and_scale(song_state):
    prior = import_edm(song_state, VP())
    assert not np.any(prior.location)
    # A quarter of the total variance, 512 entries of standard deviation 0.5, along one direction.
    assert float(prior.scale) == pytest.approx((512 * 0.5**2 / 4) ** 0.5)
    assert float(import_edm(song_state, VP(), spread=3.0).scale) == pytest.approx(3 * float(prior.scale))


def test_every_tensor_is_used_once(song_state):
    """Missing, surplus and mis-shaped tensors are named."""
    name = "enc.8x8_down.conv0.weight"
    with pytest.raises(ValueError, match=f"missing: {name}"):
        import_edm({key: value for key, value in song_state.items() if key != name}, VP())
    with pytest.raises(ValueError, match="without a place: enc.8x8_down.extra"):
        import_edm({**song_state, "enc.8x8_down.extra": song_state[name]}, VP())
    with pytest.raises(ValueError, match=rf"of another shape: {name} \(16, 8, 3, 3\) instead of \(16, 16, 3, 3\)"):
        import_edm({**song_state, name: song_state[name][:, :8]}, VP())
    filters = next(key for key in song_state if key.endswith("down.conv0.resample_filter"))
    with pytest.raises(ValueError, match="resample_filter throughout"):
        import_edm({**song_state, filters: 2 * song_state[filters]}, VP())


def test_checkpoints_that_are_refused(song_state, tmp_path):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="class-conditional network .10 labels."):
        import_edm({**song_state, "map_label.weight": torch.zeros(16, 10)}, VP())
    with pytest.raises(ValueError, match="import_adm"):
        import_edm({"time_embed.0.weight": torch.zeros(4, 4)}, VP())
    with pytest.raises(ValueError, match="beside the network"):
        import_edm({f"model.{key}": value for key, value in song_state.items()} | {"head": torch.zeros(3)}, VP())
    with pytest.raises(ValueError, match="no entry 'ema'"):
        import_edm({"net": song_state}, VP(), weights="ema")
    with pytest.raises(ValueError, match="1 other entries"):
        import_edm({**song_state, "epoch": 3}, VP())
    with pytest.raises(TypeError, match="preconditioning"):
        import_edm(song_state, "vp")
    with pytest.raises(ValueError, match="one of head_channels and num_heads"):
        import_adm(song_state, VP(), (3, 8, 8))
    with pytest.raises(FileNotFoundError, match="no file"):
        import_edm(tmp_path / "absent.pt", VP())
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        import_edm(tmp_path / "list.pt", VP())


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.filterwarnings("ignore")
def test_malicious_and_damaged_files_are_refused(song_state, tmp_path):
    import pickle

    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    trap = tmp_path / "trap"
    for write in (torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))):
        write({"ema": Bomb(str(trap))}, tmp_path / "bomb.pt")
        with pytest.raises(ValueError, match="cannot be read as plain tensors"):
            import_edm(tmp_path / "bomb.pt", VP())
        assert not trap.exists()
    torch.save(song_state, tmp_path / "good.pt")
    save_file({key: value.contiguous() for key, value in song_state.items()}, tmp_path / "good.safetensors")
    for name in ("good.pt", "good.safetensors"):
        assert import_edm(tmp_path / name, VP()).event_shape == (2, 16, 16)
        content = (tmp_path / name).read_bytes()
        for length in (0, 7, len(content) // 2, len(content) - 1):
            damaged = tmp_path / f"damaged.{name.split('.')[1]}"
            damaged.write_bytes(content[:length])
            with pytest.raises(ValueError, match="damaged"):
                import_edm(damaged, VP())


# The DDPM of others in ../shared/weights.


@pytest.fixture(scope="session")
def mnist(shared_data):
    return import_ddpm(shared_data("weights/ddpm_mnist_starter.npz"), sigma_max=10.0, dtype="float32")


@pytest.fixture(scope="session")
def mnist_check(shared_data):
    with np.load(shared_data("weights/ddpm_mnist_starter_check.npz"), allow_pickle=False) as archive:
        return dict(archive)


def test_ddpm_mnist_equals_its_original(mnist, mnist_check):
    got = network_all(mnist.network, mnist_check["x"], mnist_check["t"])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, mnist_check["eps"], atol=TOLERANCE)
    # The parameters of the statement, and the 16 frequencies.
    assert sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(mnist.network, eqx.is_array))) == 291_217 + 16


def test_ddpm_mnist_schedule(mnist, mnist_check, shared_data):
    """At the noise level of step i the network is told i / 1000, and sees x / sqrt(1 + sigma^2)."""
    with np.load(shared_data("weights/ddpm_mnist_starter.npz"), allow_pickle=False) as archive:
        alpha = archive["alpha_t"]
    step = 200
    sigma = np.sqrt((1 - alpha[step]) / alpha[step])
    x_t, eps = mnist_check["x"][1], mnist_check["eps"][1]
    assert mnist_check["t"][1] == pytest.approx(step / 1000)
    expected = (x_t - np.sqrt(1 - alpha[step]) * eps) / np.sqrt(alpha[step])
    got = mnist.denoise(jnp.asarray(x_t.reshape(-1) / np.sqrt(alpha[step])), jnp.float32(sigma))
    np.testing.assert_allclose(got.reshape(1, 28, 28), expected, atol=3 * TOLERANCE)
    assert mnist.sigma_min == pytest.approx(0.0148, abs=1e-3)


def test_ddpm_archives_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        import_ddpm(tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="no archive of a ConvDDPM"):
        import_ddpm(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="plain NumPy arrays"):
        import_ddpm(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="plain NumPy arrays"):
        import_ddpm(tmp_path / "objects.npz")


@pytest.mark.slow
def test_ddpm_inpainting(mnist, mnist_check):
    """A digit of which the lower half is hidden: the posterior keeps what was seen, and is unsure of the rest.

    The ensemble is small for 392 data: its mean reaches the noise only roughly (0.098 for a noise of 0.05 when this
    was written; unguided draws are 0.3 away), and on the hidden half it is off by 1.3 of its own spread.
    """
    from enkg_ppl import InverseProblem, Karras, guide
    from enkg_ppl.likelihood import GaussianLikelihood

    truth = np.asarray(mnist_check["samples"][3].reshape(-1), np.float32)
    seen, noise = 14 * 28, 0.05
    likelihood = GaussianLikelihood(jnp.asarray(truth[:seen]), jnp.float32(noise))
    problem = InverseProblem(mnist, lambda x: x[:seen], likelihood)
    schedule = Karras(num_steps=6, sigma_min=0.05, sigma_max=8.0)
    draws = np.asarray(guide(jr.key(0), problem, num_particles=24, schedule=schedule).draws)
    error, sd = draws.mean(0) - truth, draws.std(0)
    assert rms(error[:seen]) < 3 * noise
    assert rms(sd[:seen]) < rms(sd[seen:])
    assert rms(error[seen:]) < 3 * rms(sd[seen:])


def rms(v):
    return float(np.sqrt(np.mean(v**2)))
