"""Requests that can't be meant: each is refused with exit code 2 and one sentence, and nothing is written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from netgraft.data.subsets import FewShotSubset
from netgraft.models.loading import load_teacher

RUN = "distill --method none --shots 1 --views plain --device cpu --out out"

PAIR = f"{RUN} --student digits_vgg7_bn_half"

TEXTS: Mapping[str, str] = {
    "empty": "",
    "brackets.json": "[" * 100_000,
    "list.json": "[1, 2]",
    "number.json": "3",
    "nan.json": '{"a": NaN}',
    "classes.json": '{"0": 99}',
    "classes.txt": "one\none\n",
    "subset.json": '{"dataset": "digits", "seed": 0, "shots": 1, "population": 3, "indices": [7]}',
    "no.toml": "= 3",
    "run.toml": "run = 3",
    "key.toml": 'title = "a"\n[[run]]\nmethod = "kd"\nstrange = 1\n',
    "method.toml": 'title = "a"\n[[run]]\nmethod = "{method.foo}"\n',
    "type.toml": 'title = "a"\n[common]\nshots = "many"\n[[run]]\nmethod = "kd"\n',
    "setting.toml": 'title = "a"\n[[run]]\nmethod = "kd"\nsettings = { steps = "x" }\n',
    "name.toml": 'title = "a"\n[[run]]\nname = 3\nmethod = "kd"\n',
    "cells.toml": f'title = "a"\n[common]\nshots = {list(range(1, 3000))}\nsubset_seed = {list(range(3000))}\n'
    '[[run]]\nmethod = "kd"\n',
    "results/a.json": "{}",
    "lists/a.json": "[]",
    "plain/note.txt": "hello",
    "broken/config.json": "{",
    "hub/config.json": '{"architecture": "hf-hub:timm/resnet18"}',
    "hub/model.safetensors": "",
    "own/netgraft.json": '{"architecture": "digits_vgg7_bn"}',
    "run/config.json": '{"fingerprint": "another"}',
    "halved/config.json": '{"fing',
    "library.json": '{"of": "another", "entries": []}',
}
"""Files that a request may name, relative to its folder."""

DISTILL: Mapping[str, str] = {
    # data
    f"{RUN} --data no-such-data": "does not exist",
    f"{RUN} --data ''": "data can't be empty",
    f"{RUN} --data plain": "image",
    f"{RUN} --data empty": "expected a folder",
    f"{RUN} --data pipe": "expected a folder",
    f"{RUN} --data /dev/zero": "expected a folder",
    f"{RUN} --data loop": "",
    f"{RUN} --data timm:no-such": "",
    f"{RUN} --data pictures --student cifar_resnet8 --teacher cifar_resnet8": "give --images N",
    f"{RUN} --data {'a' * 5000}": "",
    f"{RUN} --eval-data no-such-data": "does not exist",
    f"{RUN} --data-root no-such-folder --data cifar10": "",
    # models
    f"{RUN} --teacher no_such_model": "timm has no model 'no_such_model'",
    f"{RUN} --teacher ''": "teacher can't be empty",
    f"{RUN} --teacher local-dir:no-such-folder": "",
    f"{RUN} --teacher local-dir:plain": "",
    f"{RUN} --teacher local-dir:broken": "",
    f"{RUN} --teacher local-dir:hub": "architecture",
    f"{RUN} --teacher hub": "architecture",
    f"{RUN} --teacher plain": "holds no student",
    f"{RUN} --teacher own": "",
    f"{RUN} --teacher torchvision:no_such": "torchvision has no classifier",
    f"{RUN} --teacher cifar_resnet8": "no pretrained weights",
    f"{PAIR} --teacher-weights no-such-file": "there is no weights file",
    f"{PAIR} --teacher-weights pictures": "there is no weights file",
    f"{PAIR} --teacher-weights empty": "was not loaded",
    f"{PAIR} --teacher-weights pipe": "",
    f"{PAIR} --teacher-weights scalar.safetensors": "missing keys",
    f"{PAIR} --teacher-weights constant.safetensors": "answers every image alike",
    f"{RUN} --teacher-weights constant.safetensors --keep macs=0.5": "answers every image alike",
    f"{PAIR} --teacher-weights nan.safetensors": "no finite numbers",
    f"{RUN} --student no_such_model": "timm has no model",
    f"{RUN} --student ''": "student can't be empty",
    f"{RUN} --student plain": "holds no student",
    f"{RUN} --student torchvision:resnet18": "",
    f"{PAIR} --init keep": "needs a student with weights",
    f"{PAIR} --init sideways": "init",
    f"{PAIR} --inherit all": "inherit",
    f"{PAIR} --blocks 0": "blocks",
    f"{PAIR} --blocks 99": "blocks",
    f"{PAIR} --blocks x": "blocks",
    f"{PAIR} --image-size 0": "image_size",
    f"{PAIR} --image-size 1000000": "image_size",
    # a derived student
    f"{PAIR} --keep macs=0.5": "not both",
    f"{RUN} --keep ''": "keep can't be empty",
    f"{RUN} --keep macs": "",
    f"{RUN} --keep macs=2": "between 0 and 1",
    f"{RUN} --keep macs=-1": "",
    f"{RUN} --keep macs=nan": "",
    f"{RUN} --keep macs=inf": "",
    f"{RUN} --keep macs=0": "",
    f"{RUN} --keep macs=1e-9": "can't be met",
    f"{RUN} --keep joules=3": "",
    f"{RUN} --keep macs=0.5,": "",
    f"{RUN} --keep macs=0.5 --protect no.such.module": "no.such.module",
    f"{RUN} --keep macs=0.5 --force features.0": "--force",
    f"{RUN} --keep macs=0.5 --force no.such=3": "no.such",
    f"{RUN} --keep macs=0.5 --force features.0=-1": "--force",
    f"{RUN} --keep macs=0.5 --force features.0=999999": "",
    f"{RUN} --keep macs=0.5 --library no-such-file": "is no library",
    f"{RUN} --keep macs=0.5 --library list.json": "is no library",
    f"{RUN} --keep macs=0.5 --library library.json": "another teacher",
    f"{RUN} --keep macs=0.5 --library brackets.json": "is no library",
    f"{RUN} --keep macs=0.5 --criterion luck": "criterion",
    f"{RUN} --keep macs=0.5 --allocation luck": "allocation",
    f"{RUN} --keep macs=0.5 --init random": "not with init 'random'",
    f"{PAIR} --criterion weight-norm": "takes no --criterion",
    f"{PAIR} --protect head": "takes no --protect",
    # images and labels
    f"{PAIR} --shots 0": "",
    f"{PAIR} --shots -1": "",
    f"{PAIR} --shots 10000": "",
    f"{PAIR} --shots 1.5": "shots",
    f"{PAIR} --images 3": "give one of --shots",
    "distill --method none --images 0 --out out": "",
    "distill --method none --images -3 --out out": "",
    "distill --method none --images 99999 --out out": "",
    "distill --subset no-such-file --out out": "no-such-file",
    "distill --subset empty --out out": "empty",
    "distill --subset brackets.json --out out": "brackets.json",
    "distill --subset list.json --out out": "list.json",
    "distill --subset subset.json --out out": "subset.json",
    "distill --subset other.json --out out": "was drawn from else",
    "distill --subset pipe --out out": "pipe",
    "distill --subset pictures --out out": "pictures",
    f"{PAIR} --class-map no-such-file.txt": "",
    f"{PAIR} --class-map classes.txt": "",
    f"{PAIR} --class-map classes.json": "",
    f"{PAIR} --class-map brackets.json": "",
    f"{PAIR} --class-map empty": "expected a .txt file",
    f"{PAIR} --images 3 --labeled": "give one of --shots",
    f"{PAIR} --views sharp": "--views",
    f"{PAIR} --seed x": "seed",
    f"{PAIR} --subset-seed x": "subset",
    # methods
    f"{PAIR} --method no_such_method": "there is no method",
    f"{PAIR} --method ''": "",
    f"{PAIR} --method kd+kd": "names a method twice",
    f"{PAIR} --method kd+netgraft": "can't be combined",
    f"{PAIR} --method kd+": "there is no method",
    f"{PAIR} --preset no_such_preset": "has no preset",
    f"{PAIR} --method kd --steps many": "steps must be",
    f"{PAIR} --method kd --steps -5": "steps",
    f"{PAIR} --method kd --lr nan": "lr",
    f"{PAIR} --method kd --lr inf": "lr",
    f"{PAIR} --method kd --lr -1": "lr",
    f"{PAIR} --method kd --temperature 0": "temperature",
    f"{PAIR} --method kd --weight-decay -1": "weight_decay",
    f"{PAIR} --method kd --block-steps 3": "no such option",
    f"{PAIR} --method netgraft --block-steps {10**12}": "block_steps",
    f"{PAIR} --method supervised --labeled --lr nan": "lr",
    f"{PAIR} --select best": "select",
    f"{PAIR} --select best-on-test --looks 0": "looks",
    # where and how
    f"{PAIR} --precision 16": "precision",
    f"{PAIR} --device tpu": "device",
    f"{PAIR} --devices 0": "devices",
    f"{PAIR} --devices 1000": "devices",
    f"{PAIR} --checkpoint-seconds -1": "checkpoint_seconds",
    f"{PAIR} --checkpoint-seconds nan": "checkpoint_seconds",
    f"{PAIR} --cache-memory nan": "cache-memory",
    f"{PAIR} --cache-memory -1": "cache-memory",
    f"{PAIR} --cache-memory 1e300": "cache-memory",
    f"{PAIR} --keep-answers empty": "expected a folder",
    f"{PAIR} --no-such-option": "no such option",
    f"{PAIR} surplus": "unexpected extra argument",
    "distill --shots": "requires an argument",
    "distill --method none --shots 1 --out ''": "out",
    "distill --method none --shots 1 --out empty": "holds no run",
    "distill --method none --shots 1 --out empty/below": "",
    "distill --method none --shots 1 --out plain": "holds no run",
    "distill --method none --shots 1 --out run": "already holds a run",
    "distill --method none --shots 1 --out run --resume": "holds another run",
    "distill --method none --shots 1 --out halved --resume": "is damaged",
    "distill --method none --shots 1 --out loop": "",
    f"distill --method none --shots 1 --out {'b' * 5000}": "",
}
"""Command line, relative to the folder -> words that its sentence must have."""

OTHERS: Mapping[str, str] = {
    "": "",
    "no-such-command": "no such command",
    "--no-such-option": "no such option",
    "train": "expected a model and labelled images",
    "train digits_vgg7_bn --out out": "got no --data",
    "train no_such_model --data digits --out out": "timm has no model",
    "train digits_vgg7_bn --data no-such-data --out out": "does not exist",
    "train digits_vgg7_bn --data digits --epochs many --out out": "epochs must be",
    "train digits_vgg7_bn --data digits --epochs 0 --out out": "epochs",
    "train digits_vgg7_bn --data digits --lr nan --out out": "lr",
    "train digits_vgg7_bn --data digits --weight-decay -1 --out out": "weight_decay",
    "train digits_vgg7_bn --data digits --label-smoothing 2 --out out": "label_smoothing",
    "train digits_vgg7_bn --data pictures --out out": "",
    "train digits_vgg7_bn --data digits --out plain": "holds no run",
    "train local-dir:broken --data digits --out out": "",
    "push": "missing argument",
    "push plain": "missing argument",
    "push plain small": "expected owner/name",
    "push nowhere ann/small": "which holds none",
    "push plain ann/small --dry-run": "",
    "export plain --to onnx --out n.onnx --train-steps 3": "go with --int8",
    "export plain --to onnx --out n.onnx --int8 --train-steps -1": "--train-steps",
    "train digits_vgg7_bn --data digits --log mlflow": "--log",
    "evaluate": "missing argument",
    "evaluate digits_vgg7_bn": "missing option",
    "evaluate no_such_model --data digits": "timm has no model",
    "evaluate digits_vgg7_bn --data no-such-data": "does not exist",
    "evaluate digits_vgg7_bn --data pictures": "",
    "evaluate plain --data digits": "holds no student",
    "evaluate hub --data digits": "architecture",
    "evaluate own --data digits": "",
    "evaluate digits_vgg7_bn --data digits --weights empty": "was not loaded",
    "evaluate digits_vgg7_bn --data digits --image-size -1": "image_size",
    "evaluate cifar_resnet8 --data digits": "no pretrained weights",
    "evaluate digits_vgg7_bn --data digits --class-map empty": "",
    "split": "missing argument",
    "split no_such_model": "timm has no model",
    "split plain": "holds no student",
    "split digits_vgg7_bn --blocks 1": "blocks",
    "split digits_vgg7_bn --blocks 1000": "",
    "split digits_vgg7_bn --cuts no.such.module": "no.such.module",
    "split digits_vgg7_bn --cuts ''": "",
    "split digits_vgg7_bn --blocks 2 --all-cuts": "exclude one another",
    "split digits_vgg7_bn digits_vgg7_bn_half --json": "goes with one model",
    "split digits_vgg7_bn no_such_model": "timm has no model",
    "split digits_vgg7_bn --image-size 0": "image_size",
    "suggest": "missing argument",
    "suggest no_such_model": "timm has no model",
    "suggest plain": "holds no student",
    "suggest digits_vgg7_bn --most 0": "most",
    "suggest digits_vgg7_bn --image-size 0": "image_size",
    "methods no_such_method": "there is no method",
    "methods kd kd": "unexpected extra argument",
    "subset": "missing option",
    "subset --data digits": "missing option",
    "subset --data digits --shots 0 --out out": "shots",
    "subset --data digits --shots 100000 --out out": "",
    "subset --data no-such-data --shots 1 --out out": "does not exist",
    "subset --data pictures --shots 1 --out out": "",
    "subset --data digits --shots 1 --seed x --out out": "seed",
    "subset --data digits --shots 1 --out empty": "",
    "benchmark": "missing argument",
    "benchmark no-such-file": "no-such-file",
    "benchmark pictures": "",
    "benchmark pipe": "",
    "benchmark /dev/zero": "",
    **{f"benchmark {name} --out out": "" for name in ("empty", "no.toml", "run.toml", "name.toml", "brackets.json")},
    "benchmark key.toml --out out": "strange",
    "benchmark method.toml --out out": "",
    "benchmark type.toml --out out": "shots",
    "benchmark setting.toml --out out": "steps",
    "benchmark cells.toml --out out": "",
    "benchmark key.toml --workers 0": "workers",
    "benchmark key.toml --workers x": "workers",
    "table": "missing argument",
    "table no-such-folder": "there is no folder",
    "table plain": "holds no results",
    "table results": "no result",
    "table lists": "",
    "table empty": "there is no folder",
    "table results --format pdf": "format",
    "table results --metric luck": "metric",
    "table results --format csv --layout wide": "",
}
"""As :data:`DISTILL`, of all other commands."""

REQUESTS: Mapping[str, str] = {**DISTILL, **OTHERS}


def lay_out(folder: Path) -> None:
    """Write the files that requests name."""
    for name, text in TEXTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "pictures").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "pictures" / "a.png")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    save_file({"a": torch.zeros(())}, folder / "scalar.safetensors")
    FewShotSubset.draw([0, 1, 2], shots=1, seed=0, dataset="else").save(folder / "other.json")
    state = load_teacher("digits_vgg7_bn").state_dict()
    constant = {name: torch.zeros_like(value) if name == "head.fc.weight" else value for name, value in state.items()}
    save_file(constant, folder / "constant.safetensors")
    save_file({name: value * torch.nan for name, value in state.items()}, folder / "nan.safetensors")


def arguments_of(request: str) -> list[str]:
    """Return a request's arguments."""
    return shlex.split(request)
