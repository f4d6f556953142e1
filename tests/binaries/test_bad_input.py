"""What a binary cannot use is one line and status 1."""

import pytest
from conftest import ROOT

SHARDED = "--model=digits --epsilon=0.3 --suite=rand --images=32 --batch_size=4 --block=8"
PURIFIED = f"--config={ROOT}/experiments/configs/cifar10_purified.py --config.dataset=digits"
MNIST = f"--score_model={ROOT}/pretrained/mnist_score_model.safetensors"
#: Binary, flags and what its line says.
REFUSED = [
    ("train_ebm", "--config.ebm.steps=0", "config.ebm.steps: got 0"),
    ("train_ebm", "--config.dataset=nope", "data_dir: not given"),
    ("train_classifier", "--config.dataset=mnist --data_dir={workdir}", "is not a folder"),
    ("train_classifier", f"--config.classifier.purified=0.5 {MNIST}",
     "score_model: made for images (28, 28, 1), expected those of digits, (8, 8, 1)"),
    ("train_classifier", f"--config.classifier.purified=0.0 {MNIST}",
     "score_model: given, but config.classifier.purified is 0"),
    ("train_classifier", PURIFIED,
     "score_model: not given, expected one, as config.classifier.purification"),
    ("evaluate", "--classifier={score_model} --epsilon=0.1", "is a energy, expected classifier"),
    ("evaluate", "--classifier={classifier} --epsilon=-1", "epsilon: got -1.0"),
    ("evaluate", "--classifier={classifier} --epsilon=1 --images=0", "images: got 0"),
    ("evaluate", "--model=digits --epsilon=0 --method=tweedie --rate=0.2", "rate: got 0.2"),
    ("evaluate", "--model=digits --epsilon=0.05 --images=4 --skip=nope",
     "skip: got ['nope'], expected some of ['transfer', 'momentum PGD'"),
    # As it is where a variable of the shell is not set.
    ("evaluate", "--score_model= --classifier={classifier} --epsilon=0.1",
     "score_model: got an empty text"),
    ("evaluate", f"{SHARDED} --shard=4/4", "shard: got '4/4', expected I/N with 0 <= I < N"),
    ("evaluate", f"{SHARDED} --shard=one", "shard: got 'one', expected I/N"),
    ("evaluate", f"{SHARDED} --shard=0/4 --merge", "merge: got --shard beside it"),
    ("evaluate", f"{SHARDED} --shard=0/4 --save_adversarial", "shard: got it beside saved images"),
    ("evaluate", "--defense=/nowhere/my.py:build --dataset=digits --epsilon=0.1",
     "defense: /nowhere/my.py is no file, expected FILE.py:FUNCTION"),
    ("evaluate", "--defense=my.py:build --epsilon=0.1", "dataset: not given, expected --dataset"),
    ("evaluate", "--defense=my.py:build --model=digits --epsilon=0.1",
     "defense: got --model beside it, expected one or the other"),
    ("evaluate", f"{SHARDED} --shard=0/4 --minutes=1", "block: got it beside --defense or --minutes"),
    ("purify", "--score_model={classifier} --input={workdir}",
     "is a classifier, expected energy or score"),
    ("purify", "--score_model={score_model} --input={workdir}", "input: {workdir} does not exist"),
    ("purify", "--score_model={score_model} --input={score_model}",
     "image: {score_model} cannot be read"),
    ("purify", "--score_model={score_model} --input={score_model} --num_steps=0",
     "num_steps: got 0"),
    ("denoise", "",
     "score_model, model: got neither, expected --score_model=FILE or --model=NAME"),
    ("denoise", "--model=digits --sigmas=0.1,0", "sigmas: got 0.1,0, expected positive numbers"),
    ("denoise", "--model=digits --sigmas=x", "sigmas: got x, expected positive numbers"),
    ("denoise", "--model=digits --sigmas=", "sigmas: got '', expected some names"),
    ("denoise", "--model=digits --images=0", "images: got 0, expected"),
    ("denoise", "--model=digits --dataset=digits --image_size=9",
     "image_size: the images of digits have one size"),
    ("certify", "--model=digits --alpha=1", "alpha: got 1.0, expected a number between 0 and 1"),
    ("certify", "--model=digits --n0=2000",
     "n0: got 2000 samples to select with, expected at most n"),
    ("certify", "--classifier={classifier} --noundefended",
     "undefended: got --noundefended without --score_model, expected a purifier"),
    ("detect", "--model=digits --epsilon=0.1 --calibration_images=0",
     "calibration_images: got 0"),
    ("detect", "--model=digits --epsilon=0.1 --images=300", "images: got 480, expected 1 to 360"),
    ("corruptions", "--model=digits --corruptions=rain",
     "corruption: got 'rain', expected one of"),
    ("corruptions", "--model=digits --corruptions_dir=/nowhere",
     "is missing, expected a CIFAR-10-C"),
    ("corruptions", "--model=digits --dataset=", "dataset: got an empty text"),
    ("score", f"--model=digits --images={ROOT}/README.md --seed={2**70}", f"seed: got {2**70}"),
    ("export", "--model=digits --score_model=x --output=y", "expected one or the other"),
    ("export", "--output=y", "expected --classifier=FILE, or --model=NAME"),
    ("reproduce", "--budget=0", "budget: got 0.0, expected a positive number"),
    ("reproduce", "--budget=inf", "budget: got inf, expected a positive number"),
    ("reproduce", "--suite=digits --parts=nothing",
     "parts: got ['nothing'], expected some of"),
    ("reproduce", "--suite=digits --parts=", "parts: got '', expected some names"),
    ("benchmarks.run", "--depth=27", "depth: got 27, expected 10, 16, 22, 28"),
    ("benchmarks.run", "--features=100000",
     "features: got 100000, expected a whole number from 1 to 65536"),
    ("benchmarks.run", "--sections=memory,memory",
     "sections: got 'memory,memory', expected some names, each of them"),
    ("benchmarks.run", "--out=/", "out: / is a folder, expected a file to write"),
    ("benchmarks.run", "--data_dir=/nowhere", "data_dir: /nowhere is not a folder"),
    ("benchmarks.run", "--models=mnist",
     "data_dir: not given, expected the folder of data for ['mnist']"),
    ("benchmarks.run", "--repeats=0", "repeats: got '0', expected a positive integer"),
    ("benchmarks.run", "--peers=quick", "peers: got 'quick', expected one of"),
]  # fmt: skip
#: The same, found once the work directory is claimed.
REFUSED_LATER = [
    ("evaluate", f"{SHARDED} --shard=0/9",
     "shard: got 0/9, expected one of 0/4 to 3/4 at most: 32 images in"),
    ("evaluate", f"{SHARDED} --merge",
     "has no shards with records_undefended.jsonl, expected --shard runs first"),
    ("demo", "--model=mnist", "model: the images of mnist are not in the package"),
    ("demo", "--model=digits --images=400", "images: got 400, expected 1 to 360"),
    ("experiments.reproduction.exchange", "--out={workdir} --results={folder}",
     "holds no attacked evaluation, expected some"),
]  # fmt: skip
WITHOUT_A_WORKDIR = ("export", "experiments.reproduction.exchange", "benchmarks.run")


@pytest.mark.parametrize(("name", "flags", "message"), REFUSED + REFUSED_LATER)
def test_bad_input_is_one_line(refusal, model_files, tmp_path, name, flags, message):
    score_model, classifier = model_files
    places = {
        "workdir": tmp_path / "new",
        "folder": tmp_path,
        "score_model": score_model,
        "classifier": classifier,
    }
    given = [flag.format(**places) for flag in flags.split()]
    if name not in WITHOUT_A_WORKDIR:
        given.append(f"--workdir={tmp_path / 'new'}")
    assert message.format(**places) in refusal(name, *given)
    assert (name, flags, message) in REFUSED_LATER or not list(tmp_path.iterdir())
