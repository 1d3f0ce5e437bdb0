"""The configuration of an experiment: typed, immutable, checked when it is loaded.

`ExperimentConfig` holds what all tasks share. A task's `config.py` adds its keys, defaults and constraints. Attribute
names are the yaml keys. A missing key means what the reference does without it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import ValidationError

from common.config.fields import FromMinusOne, Gpus, Natural, Positive, Scales, Split, allowed_text
from common.config.sections import DatasetConfig, LoopConfig, NetworkConfig, Section, TestConfig, TrainConfig
from common.config.yaml_tree import ValueTree, load_yaml
from common.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)


Rule = tuple[bool, str, str]
"""`(whether the problem exists, dotted key, message)`."""


DeadKeys = Mapping[str, tuple[Any, ...] | None]
"""Keys without effect, and the non-default values in shipped files that need no warning; None is any value."""


class ExperimentConfig(Section):
    """Configuration of an experiment, with the keys that all tasks share.

    Attributes:
        dead: keys without effect in this task.
    """

    dead: ClassVar[DeadKeys] = {
        "DATASET.LABEL_INDEX_IN_BATCH": (7, -1),
        "DATASET.IGNORE_DB_CACHE": (False,),
        "NETWORK.BERT_FROZEN": (False,),
        "NETWORK.BERT_ALIGN_QUESTION": (),
        "NETWORK.BERT_ALIGN_ANSWER": (),
        "NETWORK.BERT_USE_LAYER": (),
        "NETWORK.BERT_WITH_NSP_LOSS": (),
        "NETWORK.BERT_WITH_MLM_LOSS": (),
        "NETWORK.VLBERT.input_size": (),
        "NETWORK.VLBERT.input_transform_type": (),
        "NETWORK.REPLACE_OBJECT_CHANGE_LABEL": (),
        "TRAIN.VISUAL_SCALE_TEXT_LR_MULT": (),
        "TRAIN.VISUAL_SCALE_OBJECT_LR_MULT": (),
        "TRAIN.VISUAL_SCALE_CLIP_GRAD_NORM": (),
        "TEST.TEST_EPOCH": (),
    }

    RNG_SEED: FromMinusOne = -1
    """Seed of all random decisions; -1 draws a seed per run and evaluates a checkpoint with the seed of its run."""
    OUTPUT_PATH: str = ""
    """Root of the output directory; --model-dir is prepended."""
    MODULE: str = ""
    """Name of the model."""
    GPUS: Gpus = ""
    """GPUs of a run that torchrun did not start, one process each; "", "cpu" or missing GPUs select the CPU."""
    LOG_FREQUENT: Positive = 50
    """Batches between two log lines."""
    VAL_FREQUENT: Positive = 1
    """Epochs between two validations."""
    CHECKPOINT_FREQUENT: Positive = 1
    """Epochs between two numbered checkpoints."""
    CHECKPOINT_STEPS: Natural = 0
    """Optimizer steps between two states saved as {MODEL_PREFIX}-latest.model, the one before as -previous.model;
    0: only when SIGTERM, SIGUSR1 or Ctrl-C ends the run. New key.
    """
    CHECKPOINT_KEEP: Natural = 0
    """Number of numbered checkpoints to keep, the newest ones; 0: all. New key."""
    STALL_SECONDS: Natural = 45
    """With several processes: end all of them if one makes no progress for this many seconds while others wait;
    0: wait forever. New key.
    """
    MODEL_PREFIX: str = ""
    """Prefix of the names of checkpoints and result files."""
    NUM_WORKERS_PER_GPU: Natural = 4
    """Data-loading workers per process and loader."""
    SCALES: Scales = ()
    """Short side of resized images, and maximum of the long side."""
    DATASET: DatasetConfig | tuple[DatasetConfig, ...] = DatasetConfig()
    """The data."""
    NETWORK: NetworkConfig = NetworkConfig()
    """The model."""
    TRAIN: TrainConfig = TrainConfig()
    """Training."""
    VAL: LoopConfig = LoopConfig()
    """Validation."""
    TEST: TestConfig = TestConfig()
    """Testing."""

    def loop(self, split: Split) -> LoopConfig:
        """Returns the section `TRAIN`, `VAL` or `TEST`."""
        section: LoopConfig = getattr(self, split.upper())
        return section

    @property
    def datasets(self) -> tuple[DatasetConfig, ...]:
        """The `DATASET` sections: one, except in multi-task pre-training."""
        return self.DATASET if isinstance(self.DATASET, tuple) else (self.DATASET,)

    @property
    def dataset_keys(self) -> list[str]:
        """Dotted key of each of `datasets`."""
        return (
            [f"DATASET.{i}" for i in range(len(self.datasets))]
            if isinstance(self.DATASET, tuple)
            else ["DATASET"]
        )

    def rules(self) -> list[Rule]:
        """Returns combinations that cannot work; tasks add theirs."""
        network, bert = self.NETWORK, self.NETWORK.VLBERT
        pixels = "NETWORK.PIXEL_STDS" if network.PIXEL_MEANS else "NETWORK.PIXEL_MEANS"
        return [
            (not self.MODULE, "MODULE", _must_be(self, "MODULE")),
            *(
                (not data.DATASET, f"{key}.DATASET", _must_be(data, "DATASET"))
                for data, key in zip(self.datasets, self.dataset_keys, strict=True)
            ),
            (
                not self.SCALES or list(self.SCALES) != sorted(self.SCALES),
                "SCALES",
                _must_be(self, "SCALES"),
            ),
            *self._loop_rules(),
            (
                not (network.IMAGE_FEAT_PRECOMPUTED or (network.PIXEL_MEANS and network.PIXEL_STDS)),
                pixels,
                "must be three numbers [B, G, R] where images are read",
            ),
            (
                bert.visual_size != network.IMAGE_FINAL_DIM,
                "NETWORK.IMAGE_FINAL_DIM",
                f"must equal NETWORK.VLBERT.visual_size, {bert.visual_size}",
            ),
            (
                "roberta" in Path(network.BERT_MODEL_NAME).name.lower(),
                "NETWORK.BERT_MODEL_NAME",
                "must be a BERT directory; RoBERTa is not supported yet",
            ),
            (
                bert.hidden_size % bert.num_attention_heads != 0,
                "NETWORK.VLBERT.hidden_size",
                f"must be a multiple of NETWORK.VLBERT.num_attention_heads, {bert.num_attention_heads}",
            ),
            (
                bert.word_embedding_frozen and bert.vocab_size < 1000,
                "NETWORK.VLBERT.vocab_size",
                "must be at least 1000 with NETWORK.VLBERT.word_embedding_frozen",
            ),
        ]

    def _loop_rules(self) -> Iterator[Rule]:
        train = self.TRAIN
        listed = isinstance(self.DATASET, tuple)
        sizes = (
            f"must be a list of {len(self.datasets)} integers, one for each DATASET"
            if listed
            else "must be one integer"
        )
        for name, loop in (("TRAIN", train), ("VAL", self.VAL), ("TEST", self.TEST)):
            fits = isinstance(loop.BATCH_IMAGES, tuple) == listed and len(loop.batch_sizes) == len(
                self.datasets
            )
            yield not fits, f"{name}.BATCH_IMAGES", sizes
        # Configurations that are not for training have no epochs.
        last = (
            train.BEGIN_EPOCH if train.RESUME else train.BEGIN_EPOCH + 1
        )  # a finished run may be tested again
        backwards = last > train.END_EPOCH and max(train.END_EPOCH, train.BEGIN_EPOCH) > 0
        yield backwards, "TRAIN.END_EPOCH", f"must be greater than TRAIN.BEGIN_EPOCH, {train.BEGIN_EPOCH}"
        yield (
            train.RESUME and not train.BEGIN_EPOCH,
            "TRAIN.BEGIN_EPOCH",
            "must be at least 1 with TRAIN.RESUME",
        )
        yield list(train.LR_STEP) != sorted(set(train.LR_STEP)), "TRAIN.LR_STEP", "must be ascending"

    def remarks(self) -> list[Rule]:
        """Returns settings that work but may surprise; logged when a file is loaded."""
        return []

    def problems(self) -> list[str]:
        """Returns each impossible combination as "DOTTED.KEY: value: what it must be"."""
        return [f"{key}: {_show(self.value(key))}: {text}" for broken, key, text in self.rules() if broken]

    def warnings(self) -> list[str]:
        """Returns remarks, and keys without effect whose value asks for one."""
        noted = [f"{key}: {_show(self.value(key))}: {text}" for holds, key, text in self.remarks() if holds]
        for key, value, default in leaves(self):
            silent = self.dead.get(_without_index(key))
            if silent is not None and value not in (default, *silent):
                noted.append(f"{key}: {_show(value)}: this key has no effect in this task")
        return noted

    def value(self, dotted: str) -> Any:
        """Returns the value of a key such as `TRAIN.LR` or `DATASET.0.TASK`."""
        found: Any = self
        for name in dotted.split("."):
            found = found[int(name)] if isinstance(found, tuple) else getattr(found, name)
        return found


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields dotted key, value and default of every key below a section."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            for index, entry in enumerate(value):
                yield from leaves(entry, f"{prefix}{name}.{index}.")
        else:
            yield f"{prefix}{name}", value, field.default


def _must_be(section: Section, key: str) -> str:
    return f"must be {allowed_text(type(section).model_fields[key])}"


def _without_index(dotted: str) -> str:
    return ".".join(name for name in dotted.split(".") if not name.isdigit())


def _show(value: Any) -> str:
    """Formats a value on one short line, as in yaml; sections as their number of keys."""
    if isinstance(value, Section):
        return "one section"
    if isinstance(value, tuple) and value and isinstance(value[0], Section):
        return f"a list of {len(value)} sections"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


ConfigT = TypeVar("ConfigT", bound=ExperimentConfig)


def load_config(
    schema: type[ConfigT], path: str | Path, overrides: Sequence[str] = (), tree: ValueTree | None = None
) -> ConfigT:
    """Reads and checks the configuration of an experiment.

    Args:
        schema: configuration class of the task.
        path: yaml file; its optional `_BASE_` names a file to start from.
        overrides: `KEY.PATH=VALUE` with a yaml value; list entries by index (`DATASET.0.ZIP_MODE=true`).
        tree: content of the file (`load_yaml`) if it has been read; changed by the overrides.

    Raises:
        ConfigError: names file or override, key, value and what is allowed, one line per problem.
    """
    tree = tree or load_yaml(Path(path))
    for text in overrides:
        tree.override(text)
    config = _parse(schema, tree, str(path))
    _raise_all(config.problems(), tree, str(path))
    for line in config.warnings():
        logger.warning("%s: %s", _origin(line, tree, str(path)), line)
    return config


def parse_config(schema: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Checks keys, types and ranges of nested values, but not their combinations (`problems` does).

    Raises:
        ConfigError: names `source`, key, value and what is allowed, one line per problem.
    """
    tree = ValueTree()
    tree.merge(dict(values), source)
    return _parse(schema, tree, source)


def dump_config(config: ExperimentConfig) -> str:
    """Formats all values as yaml that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _parse(schema: type[ConfigT], tree: ValueTree, source: str) -> ConfigT:
    try:
        return schema.model_validate(_tuples(tree.values))
    except ValidationError as error:
        # A union reports an invalid value once for each member.
        lines = dict.fromkeys(_explain(schema, tree.values, detail["loc"]) for detail in error.errors())
        _raise_all(lines, tree, source)
        raise


def _raise_all(lines: Iterable[str], tree: ValueTree, source: str) -> None:
    """Raises one error with all lines, each of which starts with a dotted key and a colon."""
    if text := "\n".join(f"{_origin(line, tree, source)}: {line}" for line in lines):
        raise ConfigError(text)


def _origin(line: str, tree: ValueTree, source: str) -> str:
    return tree.origin(line.partition(":")[0], source)


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _explain(schema: type[Section], values: Any, location: Sequence[int | str]) -> str:
    """Formats the location of a validation error for the user."""
    section: type[Section] | None = schema
    path: list[str] = []
    allowed = "a section of keys"
    for step in location:
        if section is None:
            break  # inside a value
        if isinstance(step, int):
            values = values[step]
            path.append(str(step))
        elif step in section.model_fields:
            path.append(step)
            field = section.model_fields[step]
            values, allowed, section = values[step], allowed_text(field), _section_of(field.annotation)
        elif not step.startswith("<"):  # the tag of a union member
            return f"{'.'.join([*path, step])}: unknown key{did_you_mean(step, list(section.model_fields))}"
    return f"{'.'.join(path)}: {_show(values)}: must be {allowed}"


def _section_of(annotation: Any) -> type[Section] | None:
    """Returns the section class of an annotation, or None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_of, get_args(annotation))), None)
