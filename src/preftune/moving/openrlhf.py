"""OpenRLHF: the command lines of its scripts.

Facts are from OpenRLHF 0.11 (cli/train_dpo.py, train_rm.py, train_sft.py, train_ppo_ray.py, models/loss.py). Names of
options before 0.11 are translated.
"""

from __future__ import annotations

from typing import Any

from preftune.errors import ConfigError
from preftune.moving import common, ours, preference
from preftune.moving.draft import Draft, as_list, as_number
from preftune.moving.read import Source

DEFAULTS: dict[str, Any] = {
    "train.batch_size": 128, "train.max_epochs": 1, "train.seed": 42, "data.max_len": 512, "model.beta": 0.1,
    "adam.weight_decay": 0.0, "lr_scheduler": "cosine_with_min_lr", "lr_warmup_ratio": 0.03,
    "max_norm": 1.0, "ds.lora.alpha": 16, "ds.lora.target_modules": "all-linear", "ckpt.output_dir": "./ckpt",
    "logger.logging_steps": 1, "data.dataset_split": "train", "eval.split": "test", "ds.param_dtype": "bf16",
    "data.chosen_key": "chosen", "data.rejected_key": "rejected", "train.micro_batch_size": 8, "min_lr_ratio": 0.1,
}  # fmt: skip
PPO_DEFAULTS: dict[str, Any] = {
    "rollout.batch_size": 1024, "rollout.n_samples_per_prompt": 1, "algo.kl.init_coef": 0.01, "algo.kl.horizon": 10_000,
    "algo.kl.estimator": "k1", "algo.advantage.lambd": 1, "algo.advantage.gamma": 1, "actor.eps_clip": 0.2,
    "critic.value_clip": 0.5, "train.num_episodes": 1, "data.max_len": 2048, "algo.advantage.estimator": "gae",
    "data.prompt_split": "train", "adam.lr": 1e-6,
}  # fmt: skip
RATES = {"dpo": 1e-5, "rm": 9e-6, "sft": 5e-6}
OURS = {"dpo": "dpo", "rm": "reward", "sft": "sft", "ppo": "ppo"}
#: Options of versions before 0.11, and their names now.
OLD = {
    "pretrain": "model.model_name_or_path", "ref_pretrain": "ref.model_name_or_path",
    "reward_pretrain": "reward.model_name_or_path", "critic_pretrain": "critic.model_name_or_path",
    "save_path": "ckpt.output_dir", "ckpt_path": "ckpt.path", "save_steps": "ckpt.save_steps",
    "save_hf_ckpt": "ckpt.save_hf", "load_checkpoint": "ckpt.load_enable", "logging_steps": "logger.logging_steps",
    "eval_steps": "eval.steps", "train_batch_size": "train.batch_size",
    "micro_train_batch_size": "train.micro_batch_size", "max_epochs": "train.max_epochs", "max_len": "data.max_len",
    "learning_rate": "adam.lr", "actor_learning_rate": "adam.lr", "critic_learning_rate": "critic.adam.lr",
    "l2": "adam.weight_decay", "adam_betas": "adam.betas", "beta": "model.beta", "ipo": "model.ipo_enable",
    "label_smoothing": "model.label_smoothing", "nll_loss_coef": "model.nll_loss_coef", "loss": "model.loss_type",
    "aux_loss_coef": "model.aux_loss_coef", "margin_loss": "model.margin_loss_enable", "dataset": "data.dataset",
    "dataset_probs": "data.dataset_probs", "train_split": "data.dataset_split", "dataset_split": "data.dataset_split",
    "eval_dataset": "eval.dataset", "eval_split": "eval.split", "prompt_data": "data.prompt_dataset",
    "input_key": "data.input_key", "output_key": "data.output_key", "label_key": "data.label_key",
    "chosen_key": "data.chosen_key", "rejected_key": "data.rejected_key", "prompt_key": "data.prompt_key",
    "apply_chat_template": "data.apply_chat_template", "input_template": "data.input_template",
    "tokenizer_chat_template": "data.tokenizer_chat_template", "max_samples": "data.max_samples",
    "lora_rank": "ds.lora.rank", "lora_alpha": "ds.lora.alpha", "lora_dropout": "ds.lora.dropout",
    "target_modules": "ds.lora.target_modules", "load_in_4bit": "ds.load_in_4bit", "zero_stage": "ds.zero_stage",
    "flash_attn": "ds.attn_implementation", "packing_samples": "ds.packing_samples", "adam_offload": "ds.adam_offload",
    "gradient_checkpointing": "model.gradient_checkpointing_enable", "bf16": "ds.param_dtype",
    "param_dtype": "ds.param_dtype", "use_wandb": "logger.wandb.key", "wandb_project": "logger.wandb.project",
    "wandb_run_name": "logger.wandb.run_name", "wandb_org": "logger.wandb.org", "wandb_group": "logger.wandb.group",
    "use_tensorboard": "logger.tensorboard_dir", "seed": "train.seed", "ref_offload": "ref.offload",
    "init_kl_coef": "algo.kl.init_coef", "kl_target": "algo.kl.target", "kl_horizon": "algo.kl.horizon",
    "kl_estimator": "algo.kl.estimator", "use_kl_loss": "algo.kl.use_loss", "lambd": "algo.advantage.lambd",
    "gamma": "algo.advantage.gamma", "advantage_estimator": "algo.advantage.estimator", "eps_clip": "actor.eps_clip",
    "value_clip": "critic.value_clip", "rollout_batch_size": "rollout.batch_size", "temperature": "rollout.temperature",
    "n_samples_per_prompt": "rollout.n_samples_per_prompt", "generate_max_len": "rollout.max_new_tokens",
    "prompt_max_len": "data.prompt_max_len", "num_episodes": "train.num_episodes", "top_p": "rollout.top_p",
    "normalize_reward": "reward.normalize_enable", "remote_rm_url": "reward.remote_url",
}  # fmt: skip
#: The policy's options in train_ppo_ray, and their names in the other programs.
ACTOR = {
    "actor.model_name_or_path": "model.model_name_or_path", "actor.adam.lr": "adam.lr",
    "actor.adam.betas": "adam.betas", "actor.adam.weight_decay": "adam.weight_decay",
    "actor.adam.eps": "adam.eps", "actor.max_norm": "max_norm",
    "actor.lr_scheduler": "lr_scheduler", "actor.lr_warmup_ratio": "lr_warmup_ratio",
    "actor.min_lr_ratio": "min_lr_ratio", "actor.optim": "optim",
    "actor.gradient_checkpointing_enable": "model.gradient_checkpointing_enable",
}  # fmt: skip


def convert(source: Source, processes: int | None) -> Draft:
    """Return the draft of preftune's config. `train.batch_size` is the batch of all processes."""
    method = source.method.removesuffix("_ray")
    if method not in OURS:
        what = (
            f"the command train_{method} is not converted" if method else "the file does not say which command reads it"
        )
        raise ConfigError(what, where=source.file, fix=f"preftune has {', '.join(OURS)}; add --method to choose one")
    renames = OLD | (ACTOR if method == "ppo" else {})
    values = {renames.get(key, key): value for key, value in source.values.items()}
    names = {renames[key]: key for key in source.values if key in renames}
    defaults = DEFAULTS | (PPO_DEFAULTS if method == "ppo" else {"adam.lr": RATES[method]})
    draft = Draft("OpenRLHF", values, defaults, OURS[method], processes, names=names)
    _model(draft)
    _optimizer(draft)
    if method == "ppo":
        _ppo(draft)
    else:
        _data(draft)
        _lengths(draft)
    {"dpo": _dpo, "rm": _reward}.get(method, lambda _: None)(draft)
    _logging(draft)
    common.output(draft, "ckpt.output_dir")
    return draft


def _model(draft: Draft) -> None:
    if draft.has("model.model_name_or_path"):
        draft.put("model.path", str(draft.values["model.model_name_or_path"]), "model.model_name_or_path")
    dtype = str(draft.get("ds.param_dtype"))
    if dtype == "fp16":
        note = "differs: preftune has no fp16, whose gradients overflow"
        draft.put("model.dtype", "auto", "ds.param_dtype", note=note)
    else:
        draft.put("model.dtype", "bf16", "ds.param_dtype", note="with fp32 master weights")
    if draft.has("model.gradient_checkpointing_enable"):
        is_on = draft.on("model.gradient_checkpointing_enable")
        draft.put("model.gradient_checkpointing", is_on, "model.gradient_checkpointing_enable")
    if draft.number("ds.lora.rank"):
        names = [str(name) for name in as_list(draft.get("ds.lora.target_modules"))]
        targets: Any = "all-linear" if names == ["all-linear"] else names
        common.adapter(draft, "ds.lora.rank", "ds.lora.alpha", targets, "ds.lora.target_modules")
        ours.quantised(draft, 4 if draft.on("ds.load_in_4bit") else None, "ds.load_in_4bit")
    draft.keep("ds.lora.rank", "ds.lora.alpha", "ds.lora.target_modules", "ds.lora.dropout", note="no adapter: rank 0")
    if draft.has("ref.model_name_or_path"):
        draft.put("reference.path", str(draft.values["ref.model_name_or_path"]), "ref.model_name_or_path")


def _optimizer(draft: Draft) -> None:
    draft.put("optim.lr", float(draft.number("adam.lr") or 0), "adam.lr")
    kind = str(draft.get("lr_scheduler"))
    nearest, note = common.SCHEDULES.get(kind, ("cosine", f"preftune has no schedule {kind!r}"))
    floor = as_number(draft.get("min_lr_ratio")) or 0
    if kind == "cosine_with_min_lr" and floor:
        note = f"it ends at {floor:g} of the peak there, and at 0 in preftune"
    draft.put("optim.schedule", nearest, "lr_scheduler", "min_lr_ratio", note=f"differs: {note}" if note else "")
    warmup = draft.number("lr_warmup_ratio") or 0
    draft.put("optim.warmup", warmup if kind != "constant" else 0, "lr_warmup_ratio")
    draft.put("optim.weight_decay", float(draft.number("adam.weight_decay") or 0), "adam.weight_decay")
    draft.put("optim.max_grad_norm", float(draft.number("max_norm") or 1), "max_norm")
    if str(draft.values.get("optim", "adam")) != "adam":
        draft.lose("optim", note=common.NOT_ADAMW)
    draft.keep("optim", note="AdamW")
    if draft.has("adam.betas"):
        same = [as_number(item) for item in as_list(draft.values["adam.betas"])] == [0.9, 0.999]
        (draft.keep if same else draft.lose)("adam.betas", note="preftune's AdamW has 0.9 and 0.999")
    else:
        draft.objective.append("note: OpenRLHF has the AdamW betas 0.9 and 0.95, preftune 0.9 and 0.999")
    draft.put(
        "train.seed", int(draft.number("train.seed") or 0), "train.seed", note="another order of the data than there"
    )


def _lengths(draft: Draft) -> None:
    size = draft.number("train.batch_size")
    draft.put("batch.pairs", int(size or 128), "train.batch_size", note="the batch of all processes together")
    draft.keep("train.micro_batch_size", note="the size of micro-batches does not affect the gradient")
    draft.put("train.epochs", max(1, int(draft.number("train.max_epochs") or 1)), "train.max_epochs")
    draft.put("data.max_length", int(draft.number("data.max_len") or 512), "data.max_len")


def _data(draft: Draft) -> None:
    names = as_list(draft.values.get("data.dataset"))
    split = draft.get("data.dataset_split")
    if names:
        sources: list[Any] = [_source(str(name), split) for name in names]
        probabilities = as_list(draft.values.get("data.dataset_probs"))
        keys = ["data.dataset", "data.dataset_split"]
        if probabilities and ours.has_mixtures():
            sources = ours.mixed(sources, probabilities, "share")
            keys.append("data.dataset_probs")
        draft.put("data.train", sources[0] if len(sources) == 1 else sources, *keys)
    ours.limit(draft, "data.max_samples")
    if names:
        draft.keep("data.dataset_split", note="see data.train")
    if draft.has("eval.dataset"):
        first = as_list(draft.values["eval.dataset"])[0]
        draft.put("data.eval", _source(str(first), draft.get("eval.split")), "eval.dataset", "eval.split")
    steps = draft.number("eval.steps")
    if steps and steps > 0 and draft.has("eval.dataset"):
        draft.put("train.eval_every", int(steps), "eval.steps")
    draft.keep("eval.steps", note="preftune evaluates before the first and after the last step")
    fields = {"prompt": "data.prompt_key", "chosen": "data.chosen_key", "rejected": "data.rejected_key"}
    if draft.method == "sft":
        fields = {"prompt": "data.input_key", "completion": "data.output_key"}
    columns = {name: str(draft.get(key)) for name, key in fields.items() if draft.get(key)}
    keys = [key for key in fields.values() if draft.has(key)]
    changed = {name: theirs for name, theirs in columns.items() if name != theirs}
    if changed:
        draft.put("data.columns", changed, *keys)
    draft.keep(*fields.values(), note="the usual column names, which preftune recognises")
    if draft.on("data.apply_chat_template"):
        draft.put("data.as_chat", True, "data.apply_chat_template")
    if draft.on("data.tokenizer_chat_template"):
        note = "save it as template.jinja and set data.chat_template=template.jinja"
        draft.lose("data.tokenizer_chat_template", note=note)


def _source(name: str, split: Any) -> str:
    """Return a data set as preftune writes it. OpenRLHF writes `name@folder` for a folder of a repository."""
    return common.hub_name(name.partition("@")[0].strip(), None, split)


def _dpo(draft: Draft) -> None:
    beta, smoothing = float(draft.number("model.beta") or 0.1), float(draft.number("model.label_smoothing") or 0)
    term: preference.Term = {"name": "sigmoid", "beta": beta}
    if draft.on("model.ipo_enable"):
        term = {"name": "ipo", "beta": beta, "average": False}
        draft.objective.append(
            "ipo: OpenRLHF sums the log-probs over tokens; TRL takes the mean, so beta differs there"
        )
        if smoothing:
            draft.objective.append("label_smoothing has no effect with ipo there")
    elif smoothing:
        term["label_smoothing"] = smoothing
    result = [term]
    share = float(draft.number("model.nll_loss_coef") or 0)
    if share:
        result = [{**term, "weight": 1.0}, {"name": "nll", "weight": share}]
    keys = ("model.beta", "model.ipo_enable", "model.label_smoothing", "model.nll_loss_coef")
    preference.put_loss(draft, result, *keys)


def _reward(draft: Draft) -> None:
    kind = str(draft.values.get("model.loss_type", "sigmoid"))
    if kind != "sigmoid":
        draft.objective.append("loss_type logexp: log(1 + exp(r_l - r_w)), which equals -log sigmoid(r_w - r_l)")
    draft.keep("model.loss_type", note="the Bradley-Terry loss")
    if draft.on("model.margin_loss_enable"):
        draft.keep("model.margin_loss_enable", note="preftune uses the column margin if the data have it")


def _logging(draft: Draft) -> None:
    steps = draft.number("ckpt.save_steps")
    if steps and steps > 0:
        draft.put("train.save_every", int(steps), "ckpt.save_steps")
    draft.keep("ckpt.save_steps", note="preftune chooses when to save")
    draft.put("train.log_every", max(1, int(draft.number("logger.logging_steps") or 1)), "logger.logging_steps")
    names = [("logger.wandb.key", "wandb"), ("logger.tensorboard_dir", "tensorboard")]
    wanted = [(key, name) for key, name in names if draft.on(key)]
    if wanted:
        variables = {
            "project": "WANDB_PROJECT",
            "run_name": "WANDB_NAME",
            "org": "WANDB_ENTITY",
            "group": "WANDB_RUN_GROUP",
        }
        settings = {new: draft.values.get(f"logger.wandb.{old}") for old, new in variables.items()}
        text = " ".join(f"{name}={value}" for name, value in settings.items() if value)
        note = f"set {text} in the environment" if text else "log in with wandb login"
        draft.values = {**draft.values, **({"logger.wandb.key": "(a key)"} if draft.has("logger.wandb.key") else {})}
        draft.put("track", [name for _, name in wanted], *(key for key, _ in wanted), note=note)
    wandb = [key for key in draft.values if key.startswith("logger.wandb.")]
    draft.keep(*wandb, note="preftune reads WANDB_PROJECT, WANDB_NAME and WANDB_ENTITY from the environment")


def _ppo(draft: Draft) -> None:
    estimator = str(draft.get("algo.advantage.estimator"))
    if estimator != "gae":
        draft.refuse(f"preftune has PPO with GAE, not {estimator}")
    draft.keep("algo.advantage.estimator", note="GAE")
    names = as_list(draft.values.get("data.prompt_dataset"))
    if names:
        sources = [_source(str(name), draft.get("data.prompt_split")) for name in names]
        draft.put(
            "data.train", sources[0] if len(sources) == 1 else sources, "data.prompt_dataset", "data.prompt_split"
        )
    if draft.has("data.input_key") and draft.values["data.input_key"] != "prompt":
        draft.put("data.columns", {"prompt": str(draft.values["data.input_key"])}, "data.input_key")
    draft.put("data.as_chat", True, "data.apply_chat_template") if draft.on("data.apply_chat_template") else None
    if draft.has("reward.model_name_or_path"):
        draft.put("reward", str(draft.values["reward.model_name_or_path"]), "reward.model_name_or_path")
    draft.lose("reward.remote_url", note="set reward=file.py:function, a function of (prompts, responses)")
    if draft.has("critic.model_name_or_path"):
        draft.put("value.path", str(draft.values["critic.model_name_or_path"]), "critic.model_name_or_path")
    prompts, each = int(draft.number("rollout.batch_size") or 1), int(draft.number("rollout.n_samples_per_prompt") or 1)
    draft.put("rollout.prompts", prompts, "rollout.batch_size")
    draft.put("rollout.responses", each, "rollout.n_samples_per_prompt")
    total, fresh = int(draft.number("data.max_len") or 2048), draft.number("rollout.max_new_tokens")
    prompt = draft.number("data.prompt_max_len")
    tokens = int(fresh or total // 2)
    note = "" if fresh else "half of data.max_len, which limits prompt and response together there"
    draft.put("rollout.max_new_tokens", tokens, "rollout.max_new_tokens", "data.max_len", note=note)
    draft.put("data.max_prompt_length", int(prompt or max(1, total - tokens)), "data.prompt_max_len", "data.max_len")
    size = int(draft.number("train.batch_size") or 128)
    draft.put("ppo.minibatches", max(1, prompts * each // size), "train.batch_size", note="responses / batch_size")
    draft.put("ppo.epochs", max(1, int(draft.number("train.max_epochs") or 1)), "train.max_epochs")
    draft.put("train.epochs", max(1, int(draft.number("train.num_episodes") or 1)), "train.num_episodes")
    draft.put("ppo.kl_coef", float(draft.number("algo.kl.init_coef") or 0), "algo.kl.init_coef")
    if draft.number("algo.kl.target"):
        draft.used.discard("algo.kl.target")
        draft.put("ppo.kl_target", float(draft.number("algo.kl.target") or 1), "algo.kl.target")
        draft.put("ppo.kl_horizon", int(draft.number("algo.kl.horizon") or 10_000), "algo.kl.horizon")
    draft.put("ppo.kl_estimator", str(draft.get("algo.kl.estimator")), "algo.kl.estimator")
    draft.put("ppo.lam", float(draft.number("algo.advantage.lambd") or 0), "algo.advantage.lambd")
    draft.put("ppo.gamma", float(draft.number("algo.advantage.gamma") or 1), "algo.advantage.gamma")
    draft.put("ppo.clip", float(draft.number("actor.eps_clip") or 0.2), "actor.eps_clip")
    draft.put("ppo.value_clip", float(draft.number("critic.value_clip") or 0.5), "critic.value_clip")
    if draft.on("critic.adam.lr"):
        draft.lose("critic.adam.lr", note="policy and value network have the same learning rate")
    draft.keep("reward.normalize_enable", note="preftune's reward models store mean and standard deviation")
    if as_number(draft.get("rollout.temperature")) not in (None, 1):
        draft.lose("rollout.temperature", note="PPO samples at temperature 1 in preftune")
    draft.keep("rollout.temperature", "rollout.top_p", "train.micro_batch_size", note="as in preftune")
