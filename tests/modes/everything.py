"""One tiny example of every public function of (keys, images, labels), for tests that run all of them.

Each returns arrays with the batch as their first axis, so that one table serves ``vmap``, ``shard_map`` and all modes
of JAX alike.
"""

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax import attacks, defense, diffusions, energy, losses, networks, noise, purifiers
from purify_jax import keys as streams
from purify_jax.evaluation import Draws, certification, detection
from purify_jax.evaluation.probes import health
from purify_jax.evaluation.probes.sweeps import AttackedAndScored
from purify_jax.training import LogNormal, augmentation
from purify_jax.training.adversarial import Attack as TrainingAttack
from purify_jax.training.score_model import denoising_loss

#: So few images, steps and samples that everything runs in seconds.
IMAGES = np.linspace(0.1, 0.9, 2 * 4 * 4).reshape(2, 4, 4, 1).astype(np.float32)
LABELS = np.array([0, 1], np.int32)


def score(images):
    """A score without parameters."""
    return 0.3 * (0.5 - images)


def logits(images):
    """Four classes, told by four pixels."""
    flat = images.reshape(images.shape[0], -1)
    return jnp.stack([flat[:, 0], flat[:, 3], flat[:, 5], flat[:, 7]], axis=-1)


def noise_score(x, sigma):
    """The score of N(½, 0.1) data smoothed by σ."""
    return (0.5 - x) / (0.1 + jnp.reshape(sigma, (-1, 1, 1, 1)) ** 2)


def all_purifiers():
    """Name → purifier; tests/test_keys.py checks that every class of the library is here."""
    diffusion, short = diffusions.FromScore(noise_score), {"t_star": 0.003, "num_steps": 3}
    chain = {"step_size": 0.05, "num_steps": 3, "num_restarts": 2}
    two = {"num_restarts": 2}
    return {
        "adp": purifiers.ADP(score, num_steps=2, num_restarts=4),
        "langevin": purifiers.Langevin(score, **chain),
        "mala": purifiers.MALA(score, **chain),
        "annealed": purifiers.Annealed(noise_score, (0.3, 0.1), temperature=1.0, **two),
        "flow": purifiers.ProbabilityFlow(noise_score, (0.3, 0.1), **two),
        "sde": purifiers.ReverseSDE(noise_score, (0.3, 0.1), **two),
        "gradual": purifiers.GradualNoise(noise_score, [(0.1, 0.05), (0.2, 0.05)], **two),
        "tweedie": purifiers.tweedie(noise_score, 0.2, **two),
        "denoise": purifiers.Denoiser(noise_score, (0.2,)),
        "blur": purifiers.gaussian_blur(0.5),
        "diffpure sde": purifiers.DiffPureSDE(diffusion, **short, **two),
        "diffpure ode": purifiers.DiffPureODE(diffusion, **short, **two),
        "ddim": purifiers.DDIM(diffusion, t_star=0.003, num_steps=2, **two),
        "gdmp": purifiers.GDMP(diffusion, t_star=0.002, num_rounds=2, **two),
        "likelihood": purifiers.LikelihoodMaximisation(diffusion, num_steps=2, **two),
    }


def all_attacks():
    """Name → attack on a random defense."""
    attacked = defense.Defense(all_purifiers()["adp"], logits)
    ball = {"epsilon": 0.1, "num_steps": 3}
    gradient = attacks.EOT(attacks.ExactGradient(attacked), num_samples=3, samples_at_once=1)
    spsa = attacks.SPSA(attacked, num_queries=8, queries_at_once=4)
    l2 = {"epsilon": 0.5, "norm": "l2"}
    mean = attacks.MeanPrediction(attacked, num_samples=2, samples_at_once=1)
    return {
        "pgd l2": attacks.PGD(gradient, **ball, norm="l2"),
        "pgd l1": attacks.PGD(attacks.JointFull(attacked), **ball, norm="l1"),
        "spsa": attacks.PGD(spsa, **ball),
        "grafted": attacks.PGD(attacks.Grafted(attacked, num_samples=3, step=0.02), **ball),
        "apgd restarts": attacks.APGD(gradient, **ball, num_restarts=2),
        "apgd targeted": attacks.TargetedAPGD(
            attacked, **ball, num_targets=2, num_samples=2, deterministic=False
        ),
        "momentum": attacks.MomentumPGD(gradient, **ball),
        "momentum warm start": attacks.MomentumPGD(
            gradient, **ball, start=attacks.PGD(attacks.blind(logits), **ball)
        ),
        "joint (score)": attacks.PGD(attacks.JointScore(score, logits), **ball),
        "mean prediction": attacks.PGD(attacks.ExactGradient(mean), **ball),
        "evading": attacks.PGD(evading(attacked), **ball),
        "shared keys": attacks.white_box(attacked, attacks.suites.Options(epsilon=0.1, steps=2)),
        "square": attacks.Square(attacked, epsilon=0.1, num_queries=4, num_samples=2),
        "square l2": attacks.Square(attacked, **l2, num_queries=4, num_samples=2),
    }


def evading(attacked):
    """The gradient that evades a detector by the energy's drop."""
    return detection.Evading(attacked, detection.EnergyDrop(score, attacked.purifier), 0.1)


def _purified(purifier):
    def run(keys, images, labels):
        purified, info = purifier(keys, images)
        axes = jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), tuple(info))
        return jnp.moveaxis(purified, 1, 0), axes

    return run


def _step_rules():
    estimates = {
        "jvp": purifiers.JacobianVectorProduct(),
        "secant": purifiers.Secant(),
        "difference": purifiers.FiniteDifference(),
    }
    rules = {name: purifiers.Adaptive(curvature=c) for name, c in estimates.items()}
    rules |= {"constant": purifiers.Constant(0.1), "held": purifiers.HeldConstant(rules["secant"])}
    decided = lambda x: jnp.mean(x, axis=(1, 2, 3))
    scaled = {"noise_scale": decided, "pixel_scaling": purifiers.PublishedPixelScaling()}
    made = {n: purifiers.ADP(score, r, num_steps=2, num_restarts=1) for n, r in rules.items()}
    made["published"] = purifiers.ADP(
        score, num_steps=2, num_restarts=2, restarts_at_once=1, **scaled
    )
    made["jpeg"] = purifiers.jpeg(50)
    quadratic = energy.gaussian_energy(
        np.full((4, 4, 1), 0.5, np.float32), np.eye(16, dtype=np.float32)
    )
    made["from an energy"] = purifiers.ADP(energy.score_from_energy(quadratic), num_steps=2)
    chain = {"step_size": 0.05, "num_steps": 2}
    made["mala, energy"] = purifiers.MALA(
        energy.score_from_energy(quadratic), **chain, energy_fn=quadratic
    )
    return {f"purifier {name}": _purified(p) for name, p in made.items()}


def _losses():
    def of_classes(loss_fn):
        return lambda keys, images, labels: jax.grad(
            lambda x: jnp.sum(loss_fn(jax.nn.log_softmax(logits(x)), labels))
        )(images)

    found = {
        n: of_classes(getattr(losses, n))
        for n in ("cross_entropy", "margin", "smooth_error", "dlr")
    }
    found["targeted dlr"] = lambda k, x, y: losses.targeted_dlr(y)(logits(x), 1 - y)
    found["targeted"] = lambda k, x, y: losses.targeted(losses.margin)(logits(x), y)
    levels = noise.geometric(0.5, 0.1, 3)
    for name, scale in noise.SCALES.items():
        found[f"dsm {name}"] = lambda k, x, y, scale=scale: losses.denoising_score_matching(
            score, k, x, levels, scale, perturb=noise.patterns(0.2)
        )
    return {f"loss {name}": loss for name, loss in found.items()}


def _defenses():
    adp = all_purifiers()["adp"]
    made = {
        name: defense.Defense(adp, logits, combine=getattr(defense, name))
        for name in ("mean_probabilities", "mean_logits", "vote")
    }
    made["one restart"] = made["vote"].with_restarts(1)
    made["undefended"] = defense.undefended(logits)
    run = lambda d: lambda keys, images, labels: (
        d(keys, images), attacks.ExactGradient(d)(keys, images, labels)
    )  # fmt: skip
    return {f"defense {name}": run(d) for name, d in made.items()}


def _attacks():
    found = dict(all_attacks())
    bare, random = (
        defense.Defense(p, logits) for p in (purifiers.identity, all_purifiers()["adp"])
    )
    exact, ball = attacks.ExactGradient(bare), {"epsilon": 0.1, "num_steps": 2}
    for norm in ("linf", "l2", "l1"):
        found[f"pgd {norm}, bare"] = attacks.PGD(exact, **ball, norm=norm)
        found[f"momentum {norm}, bare"] = attacks.MomentumPGD(exact, **ball, norm=norm)
    for norm in ("linf", "l2"):
        found[f"apgd {norm}, bare"] = attacks.APGD(exact, **ball, norm=norm, predict=bare)
    found["bpda"] = attacks.PGD(attacks.bpda(random), **ball)
    found["held steps"] = attacks.PGD(attacks.exact_held_steps(random), **ball)
    found["square, published"] = attacks.Square(
        bare, epsilon=0.1, num_queries=3, published_windows=True
    )
    found["of a training"] = TrainingAttack(0.1, start_noise=2.0).on(bare)
    return {f"attack {name}": attack for name, attack in found.items()}


def _evaluation():
    random = defense.Defense(all_purifiers()["adp"].replace(num_restarts=9), logits)
    drop = detection.EnergyDrop(score, random.purifier)
    counts = certification.ClassCounts(random, 0.2, num_samples=5, samples_at_once=3)
    attack = attacks.PGD(attacks.ExactGradient(random), epsilon=0.1, num_steps=2)
    scored = AttackedAndScored(attack=attack, scorer=Draws(random, draws=2))
    decided = detection.deciding_purifier(
        all_purifiers()["adp"], lambda keys, x: jnp.mean(x, axis=(1, 2, 3)), 0.5, 0.2
    )
    return {
        "evaluation draws": lambda k, x, y: jnp.moveaxis(Draws(random, draws=3)(k, x), 1, 0),
        "evaluation counts": lambda k, x, y: counts(k, x, jnp.zeros(x.shape[0], jnp.int32)),
        "evaluation judge": lambda k, x, y: detection.Judge(random, drop, 0.1)(k, x, y),
        "evaluation energy drop": lambda k, x, y: drop(k, x),
        "evaluation deciding": _purified(decided),
        "evaluation scored": lambda k, x, y: jax.tree.map(
            lambda a: jnp.moveaxis(a, -1, 0) if a.shape[0] != x.shape[0] else a, scored(k, x, y)
        ),
        "evaluation health": health.Health(defense=random),
    }


def _of_network(network, *condition):
    """A network's output and the gradient of its sum, at parameters that were made once."""
    images = jax.ShapeDtypeStruct((1, *SIZES.get(type(network).__name__, (8, 8, 3))), jnp.float32)
    given = [jax.ShapeDtypeStruct((1,), jnp.float32) for _ in condition]
    shapes = jax.eval_shape(network.init, jax.random.key(0), images, *given)
    variables = jax.tree.map(lambda a: np.full(a.shape, 0.1, a.dtype), shapes)

    def run(keys, images, labels):
        x = jnp.resize(images, (images.shape[0], *SIZES.get(type(network).__name__, (8, 8, 3))))
        level = [jnp.full_like(x[:, 0, 0, 0], value) for value in condition]
        output = lambda x: network.apply(variables, x, *level)
        return output(x), jax.grad(lambda x: jnp.sum(output(x)))(x)

    return run


#: Sizes of images that a network needs, where they are not (8, 8, 3).
SIZES = {"WhitenedConvNet": (27, 27, 3)}


def _networks():
    made = [
        networks.MLP(features=(4, 4)),
        networks.ConvNet(features=(2, 2), hidden=4, num_outputs=3),
        networks.UNet(features=(2, 2)),
        networks.NCSNv2(features=2),
        networks.ShuffledUNet(features=(2, 2)),
        networks.WhitenedConvNet(num_outputs=3, features=(2, 2, 2)),
        networks.WideResNet(depth=10, width=1, num_outputs=3),
        networks.PreActResNet18(
            num_outputs=3, features=2, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
        ),
        networks.ResNet(num_outputs=3, blocks=(1, 1), features=2),
    ]
    conditional = [
        networks.NoiseConditionalUNet(features=(2, 2)),
        networks.SongUNet(features=4, multipliers=(1, 1), num_blocks=1, attention_resolutions=(4,)),
        networks.DDPMpp(features=4, multipliers=(1, 1), num_blocks=1, attention_resolutions=(4,)),
        networks.ADM(
            features=32, head_channels=32, multipliers=(1, 1), num_blocks=1, attention_rates=(2,)
        ),
    ]
    found = {f"network {type(n).__name__}": _of_network(n) for n in made}
    return found | {f"network {type(n).__name__}": _of_network(n, 0.5) for n in conditional}


def _training():
    adp = all_purifiers()["adp"]
    augment = augmentation.CropAndPurify(adp, share=0.5, crop_padding=1)
    flip = lambda k, x, y: augmentation.alternating_flip(
        k[0], x, jnp.arange(x.shape[0]), jnp.zeros(x.shape[0], jnp.int32)
    )
    normal = LogNormal(-1.0, 0.5)
    return {
        "training flip": lambda k, x, y: augmentation.random_flip(k, x),
        "training alternating flip": flip,
        "training crop": lambda k, x, y: augmentation.random_crop(k, x, 2, mode="reflect"),
        "training crop and purify": lambda k, x, y: augment(k, x),
        "training edm": lambda k, x, y: denoising_loss(lambda a, s: -0.1 * a, k, x, normal),
        "training patterns": lambda k, x, y: noise.patterns(0.2)(k, x),
        "training image keys": lambda k, x, y: jax.random.key_data(
            streams.image_keys(k[0], jnp.arange(x.shape[0]))
        ),
    }


def everything():
    """Name → function of (keys, images, labels)."""
    found = {f"purifier {name}": _purified(p) for name, p in all_purifiers().items()}
    for more in (_step_rules, _losses, _defenses, _attacks, _evaluation, _training, _networks):
        found |= more()
    return found
