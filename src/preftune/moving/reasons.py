"""Why a key of another program needs no setting (SAME), or is not carried over and what to do instead (LOST)."""

from __future__ import annotations

SPEED = "affects speed and memory only; preftune chooses it"
SHARDING = "one process per config; several processes: see docs/do/ranks.md"
NO_REPORT = "preftune writes its own report and log"
HUB = "upload the result with preftune export RUN --to hub --repo USER/NAME"
TRUST = "preftune runs no code of models"
FROZEN = "preftune trains all weights or a LoRA adapter"
CACHE = "preftune caches by content"
IMAGES = "preftune trains on text only"
QUANTISED = "without an adapter, weights are not quantised; with one, model.quant=nf4 or int8"
DETAILS = "details of quantised weights: preftune has model.quant=nf4 and int8"
RESUME = "rerun the same command to resume"
DROPOUT = "preftune's adapters have no dropout"
BEST = "preftune keeps the last model; compare checkpoints with preftune eval accuracy"
ROWS = "preftune reads all rows; write a shorter file, for example with head -n"
MIXTURE = "the data sets are read one after the other, all of their rows"
NOT_LOSS = "preftune does not have this variant of the loss"


def _table(text: str) -> dict[str, str]:
    """Return {key: reason} from lines `REASON: key key ...`."""
    rows = (line.split(": ", 1) for line in text.strip().splitlines())
    return {key: globals().get(name.strip(), name.strip()) for name, keys in rows for key in keys.split()}


TRAINER_SAME = _table(
    """
    SPEED: liger_kernel_config bf16_full_eval fp16_full_eval eval_use_gather_object batch_eval_metrics
    SPEED: include_for_metrics dataloader_multiprocessing_context dataloader_in_order enable_jit_checkpoint eval_packing
    SHARDING: ddp_broadcast_buffers ddp_static_graph
    the data are in another order in every epoch: shuffle_dataset train_dataloader_shuffle
    preftune reads WANDB_PROJECT, TRACKIO_PROJECT and TRACKIO_SPACE_ID from the environment: project trackio_*
    SPEED: per_device_eval_batch_size eval_accumulation_steps dataloader_num_workers dataloader_pin_memory
    SPEED: dataloader_prefetch_factor dataloader_persistent_workers dataset_num_proc gradient_checkpointing_kwargs
    SPEED: attn_implementation use_liger_kernel tf32 group_by_length length_column_name padding_free packing
    SPEED: torch_empty_cache_steps preprocessing_num_workers low_cpu_mem_usage use_cache pad_to_multiple_of
    SPEED: torch_compile_backend torch_compile_mode activation_offloading use_flash_attention_2 pad_to_sequence_len
    SPEED: precompute_ref_batch_size use_reentrant auto_find_batch_size train_sampling_strategy use_logits_to_keep
    SPEED: packing_strategy fp8_enable_fsdp_float8_all_gather optim_args include_num_input_tokens_seen
    SPEED: include_tokens_per_second skip_memory_metrics torch_compile
    SPEED: activation_checkpointing activation_checkpointing_kwargs average_tokens_across_devices eval_do_concat_batches
    SHARDING: deepspeed fsdp fsdp_config ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_backend local_rank
    SHARDING: accelerator_config parallelism_config num_processes num_machines machine_rank mixed_precision
    SHARDING: main_process_port distributed_type config_file use_cpu accelerate_config master_port master_addr
    NO_REPORT: logging_strategy logging_first_step logging_dir log_level disable_tqdm plot_loss logging_nan_inf_filter
    NO_REPORT: log_level_replica log_on_each_node debug verbose
    RESUME: resume_from_checkpoint overwrite_output_dir save_only_model save_total_limit ignore_data_skip auto_resume
    RESUME: save_safetensors save_on_each_node restore_callback_states_from_checkpoint safe_serialization
    CACHE: overwrite_cache preprocessing_batch_size cache_dir
    preftune evaluates if data.eval is set: do_train do_eval do_predict eval_on_start eval_delay prediction_loss_only
    preftune uses every column or reports it: remove_unused_columns label_names
    preftune has no dropout in training: disable_dropout
    preftune pads without a special token: pad_token padding_value label_pad_token_id
    the seed of the data is train.seed: data_seed
    preftune does not need it: ignore_bias_buffers is_encoder_decoder full_determinism dataloader_drop_last
    """
)
TRAINER_LOST = _table(
    """
    preftune trains with adamw or rmsprop: optim_target_modules optimizer
    DETAILS: bnb_4bit_quant_storage quantization_device_map hqq_axis
    HUB: push_to_hub hub_model_id hub_strategy hub_private_repo hub_model_revision hub_revision hub_token
    HUB: hub_always_push
    HUB: push_to_hub_revision
    TRUST: trust_remote_code
    QUANTISED: load_in_4bit load_in_8bit quantization_bit quant_bits
    DETAILS: bnb_4bit_quant_type use_bnb_nested_quant quantization_method
    DETAILS: quantization_type double_quantization quant_method bnb_4bit_compute_dtype
    DETAILS: bnb_4bit_use_double_quant
    DROPOUT: lora_dropout
    set lora.dora=true: use_dora peft_use_dora
    set lora.modules_to_save to these modules: lora_modules_to_save modules_to_save additional_target
    preftune's adapters consist of low-rank matrices only: lora_target_parameters lora_bias lora_task_type
    BEST: load_best_model_at_end metric_for_best_model greater_is_better early_stopping_patience early_stopping_steps
    ROWS: max_samples max_train_samples max_eval_samples
    MIXTURE: interleave_probs mix_strategy dataset_shuffle buffer_size streaming dataset_streaming
    preftune has no NEFTune noise: neftune_noise_alpha
    preftune's loss has no smoothing of tokens: label_smoothing_factor
    preftune has no auxiliary loss for mixtures of experts: router_aux_loss_coef moe_aux_loss_coef aux_loss_coef
    preftune keeps the reference; preftune iterate with reference=refreshed replaces it each round: sync_ref_model
    no effect without sync_ref_model: ref_model_mixup_alpha ref_model_sync_steps
    NOT_LOSS: f_divergence_type ld_alpha use_weighting loss_weights
    no effect with this loss_type: f_alpha_divergence_coef discopop_tau label_smoothing
    preftune truncates the prompt first, then the responses: truncation_mode max_completion_length max_target_length
    preftune generates with its monitor (section monitor): generate_during_eval
    set model.path to this adapter, or reference.path: model_adapter_name ref_adapter_name force_use_ref_model
    model arguments are not carried over: model_init_kwargs ref_model_init_kwargs
    set these variables in the shell: env
    preftune has its tokenizer from model.path: tokenizer_name_or_path tokenizer_name eos_token
    """
)
TRL_SAME = _table(
    """
    SPEED: vllm_mode use_vllm
    NO_REPORT: log_completions
    the data name their columns: dataset_text_field dataset_kwargs dataset_batch_size
    preftune reads dataset_mixture: dataset_configs
    """
)
LF_SAME = _table(
    """
    SPEED: device_map offload_folder use_kv_cache upcast_lmhead_output compute_dtype block_diag_attn kt_*
    NO_REPORT: enable_torch_profiler profiler_* profile_modules
    no effect in this stage: reward_model reward_model_*
    no effect in training: do_sample max_length repetition_penalty length_penalty vllm_* sglang_* export_* infer_*
    the same as cutoff_len: model_max_length
    SPEED: flash_attn use_unsloth use_unsloth_gc enable_liger_kernel use_fast_tokenizer use_reentrant_gc
    SPEED: upcast_layernorm
    SPEED: data_shared_file_system neat_packing packing kt_config use_kt use_v1_kernels
    SPEED: include_effective_tokens_per_second kt_cpu_activation kt_weight_path kt_non_expert_weight_path badam_verbose
    SHARDING: tensor_model_parallel_size sequence_parallel pipeline_model_parallel_size use_distributed_optimizer
    SHARDING: overlap_param_gather overlap_grad_reduce expert_model_parallel_size fsdp_transformer_layer_cls_to_wrap
    SHARDING: bias_activation_fusion apply_rope_fusion moe_grouped_gemm moe_token_dispatcher_type context_parallel_size
    SHARDING: recompute_granularity use_packed_sequences export_hf_on_finish
    SHARDING: ray_num_workers ray_init_kwargs ray_run_name ray_storage_path placement_strategy resources_per_worker
    NO_REPORT: print_param_status compute_accuracy
    no effect in training: temperature top_p top_k num_beams max_new_tokens infer_backend predict_with_generate
    no effect in training: generation_max_length generation_num_beams eval_num_beams skip_special_tokens
    no effect with this loss: simpo_gamma kto_chosen_weight kto_rejected_weight dpo_label_smoothing pref_loss pref_beta
    no effect in this stage: ppo_epochs ppo_buffer_size ppo_target reward_model_type ppo_score_norm ppo_whiten_rewards
    a new adapter is trained either way: create_new_adapter
    preftune scores only what the assistant writes: ignore_pad_token_for_loss
    """
)
LF_LOST = _table(
    """
    FROZEN: galore_* apollo_* badam_* oft_* pissa_* freeze_*
    IMAGES: image_* video_* crop_to_patches
    preftune does not write to swanlab: swanlab_*
    preftune has no Megatron: hyper_parallel_*
    preftune changes no vocabulary: split_special_tokens init_special_tokens
    use the Hugging Face Hub: om_hub_token
    set model.path to this adapter folder: adapter_folder
    FROZEN: freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_llama_pro use_galore use_apollo
    FROZEN: use_badam use_adam_mini use_muon pissa_init pissa_convert loraplus_lr_ratio loraplus_lr_embedding oft_rank
    FROZEN: oft_block_size oft_target galore_layerwise galore_target galore_rank galore_scale galore_update_interval
    FROZEN: apollo_target apollo_rank apollo_scale badam_mode badam_switch_mode badam_switch_interval badam_update_ratio
    FROZEN: badam_mask_mode apollo_layerwise apollo_update_interval apollo_scale_type pissa_iter module_dropout
    IMAGES: freeze_vision_tower freeze_multi_modal_projector freeze_language_model image_max_pixels image_min_pixels
    IMAGES: video_max_pixels video_min_pixels video_fps video_maxlen media_dir audio_sampling_rate use_audio_in_video
    set reference.path to a full model or an adapter folder: ref_model_adapters ref_model_quantization_bit
    NOT_LOSS: use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha
    preftune does not train on prompts: train_on_prompt
    preftune changes no vocabulary: resize_vocab add_tokens add_special_tokens new_special_tokens_config
    preftune keeps the model's position encoding: rope_scaling shift_attn mixture_of_depths
    add the system message to the rows: default_system
    preftune reads tools in its own format: tool_format
    data.thinking controls reasoning: preserve_thinking
    preftune reads raw data: tokenized_path
    the model is trained from its weights: train_from_scratch
    preftune does not write to swanlab: use_swanlab swanlab_project swanlab_run_name swanlab_mode
    use the Hugging Face Hub: hf_hub_token ms_hub_token
    preftune has no fp8 training: fp8 fp8_backend
    preftune has no Megatron: use_mca use_megatron_bridge megatron_bridge_args use_hyper_parallel hyper_parallel_args
    preftune scores the same rows in every epoch: disable_shuffling
    preftune evaluates all data sets together: eval_on_each_dataset
    """
)
AXOLOTL_SAME = _table(
    """
    SPEED: gc_collect_steps selective_checkpointing sample_packing_* pretrain_multipack_*
    SPEED: streaming_multipack_buffer_size
    SPEED: sage_attention large_head_attention flash_attn_* sdpa_varlen lora_embedding_kernel chunked_cross_entropy_*
    SPEED: tiled_mlp_* torch_compile_options max_memory gpu_memory_limit device fp32_norms fp32_norm_classes use_dsv4_*
    SPEED: qlora_sharded_model_loading peft_autocast_adapter_dtype dsv4_* expert_parallel_*
    SHARDING: fsdp_final_state_dict_type resources_per_worker
    NO_REPORT: profiler_steps_start generation_* num_generation_samples
    RESUME: dynamic_checkpoint
    no effect in training: gradio_* is_preprocess preprocess_iterable total_num_tokens total_supervised_tokens
    no effect in training: merge_method
    no effect in training: axolotl_config_path tokenizer_save_jinja_files num_dataset_shards_to_save
    SPEED: sample_packing eval_sample_packing flash_attention sdp_attention xformers_attention flex_attention
    SPEED: eager_attention
    SPEED: flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp unsloth_cross_entropy_loss unsloth_lora_mlp
    SPEED: unsloth_lora_qkv unsloth_lora_o lora_mlp_kernel lora_qkv_kernel lora_o_kernel dataset_processes
    SPEED: eval_batch_size sample_packing_bin_size sample_packing_group_size gc_steps dpo_padding_free
    SPEED: dpo_use_liger_kernel liger_rope liger_rms_norm liger_swiglu liger_glu_activation liger_layer_norm
    SPEED: liger_fused_linear_cross_entropy cut_cross_entropy chunked_cross_entropy plugins bfloat16 float16
    SPEED: batch_flattening multipack_real_batches use_kernels experts_implementation device_map lora_on_cpu
    SPEED: dpo_use_logits_to_keep shuffle_merged_datasets dataset_keep_in_memory strict large_model
    SPEED: liger_rms_norm_gated gemma4_hybrid_attn_impl fused_attn_kernel flex_attn_compile_kwargs flash_optimum
    SPEED: llama4_linearized_experts sample_packing_sequentially use_dsv4_kernels use_glm_dsa_kernels
    SPEED: max_packed_sequence_len
    SPEED: gradient_checkpointing attention_bias layer_offloading tiled_mlp save_first_step scaling_softmax
    SHARDING: fsdp_version dp_shard_size dp_replicate_size tensor_parallel_size context_parallel_size
    SHARDING: sequence_parallel_degree ddp heads_k_stride ring_attn_func use_ray ray_num_workers ray_run_name world_size
    SHARDING: experimental_skip_move_to_device deepcompile expert_parallel_size
    NO_REPORT: use_otel_metrics otel_metrics_host otel_metrics_port eval_causal_lm_metrics
    the tokenizer and config are those of model.path: tokenizer_use_mistral_common cls_model_config model_config
    CACHE: dataset_prepared_path dataset_keep_in_memory dataset_shard_num dataset_shard_idx skip_prepare_dataset
    NO_REPORT: debug verbosity loss_watchdog_threshold loss_watchdog_patience eval_table_size eval_max_new_tokens
    NO_REPORT: wandb_watch
    NO_REPORT: wandb_log_model profiler_steps include_tkps use_wandb use_comet use_mlflow use_tensorboard
    NO_REPORT: hf_mlflow_log_artifacts
    RESUME: auto_resume_from_checkpoints
    the class follows from the method: model_type tokenizer_type num_labels trust_remote_code_tokenizer
    the class follows from the method: is_llama_derived_model is_mistral_derived_model is_falcon_derived_model
    the tokenizer and config are those of model.path: tokenizer_config base_model_config tokenizer_use_fast
    the tokenizer and config are those of model.path: tokenizer_legacy base_model_ignore_patterns is_qwen_derived_model
    preftune scores only what the assistant writes: train_on_inputs
    preftune reports duplicates (preftune data check): dataset_exact_deduplication
    preftune scores the end of each turn: eot_tokens
    one column per role: chat_template_jinja_variables
    no effect here: lora_fan_in_fan_out merge_lora hf_use_auth_token lora_model_dir val_set_size pad_to_multiple_of
    """
)
AXOLOTL_LOST = _table(
    """
    preftune changes no vocabulary: mean_resizing_embeddings shrink_embeddings embeddings_skip_upcast
    preftune does not write to swanlab or comet: comet_* swanlab_*
    preftune trains with adamw or rmsprop: dion_* qgalore_* adam_beta3 adam_epsilon2 torchdistx_path adam_eps
    FROZEN: loftq_* peft_* relora_* jagged_* lisa_*
    NOT_LOSS: eaft_k ebft diffusion
    preftune keeps the model as it is: pose_* scaling_softmax_* noisy_embedding_alpha type_of_model processor_kwargs
    preftune keeps the model as it is: llmcompressor nvfp4_merge_aware rope_scaling
    preftune evaluates on data.eval: bench_*
    preftune's schedules have no parameters: lr_div_factor eta_min
    preftune reads one sequence per row: pretraining_sample_concatenation
    FROZEN: unfrozen_parameters lisa_n_layers lisa_step_interval relora relora_prune_ratio loraplus_lr_ratio
    FROZEN: loraplus_lr_embedding lora_modules_to_save peft_layers_to_transform lora_rank_pattern lora_alpha_pattern
    FROZEN: embedding_lr embedding_lr_scale lr_groups optim_target_modules peft_init_lora_weights loftq peft
    FROZEN: lora_target_parameters peft_trainable_token_indices freeze_mm_modules
    preftune changes no vocabulary: special_tokens tokens added_tokens_overrides resize_token_embeddings_to_32x
    save it as template.jinja and set data.chat_template=template.jinja: chat_template_jinja
    add the system message to the rows: default_system_message
    preftune has no fp8 and no quantisation-aware training: fp8 qat quantization gptq bnb_config_kwargs
    preftune keeps the model as it is: overrides_of_model_config overrides_of_model_kwargs use_pose s2_attention
    preftune keeps the model as it is: reinit_weights fix_untrained_tokens use_onebitllms use_scattermoe use_sonicmoe
    MIXTURE: shuffle_before_merging_datasets curriculum_sampling
    preftune generates with its monitor (section monitor): generate_samples dpo_generate_during_eval
    HUB: push_dataset_to_hub hub_repo_id
    preftune has another loss for each of these: trainer_cls use_eaft eaft_alpha
    set data.eval to a file: eval_sequence_len min_sample_len do_bench_eval bench_dataset do_causal_lm_eval
    preftune does not write to swanlab or comet: use_swanlab swanlab_project swanlab_run_name swanlab_mode
    IMAGES: processor_type image_size
    DETAILS: quantize_moe_experts model_quantization_config model_quantization_config_kwargs gptq_disable_exllama
    preftune does not write to swanlab or comet: swanlab_experiment_name swanlab_description swanlab_log_completions
    preftune does not write to swanlab or comet: swanlab_completion_log_interval swanlab_completion_max_buffer
    preftune does not write to swanlab or comet: swanlab_log_model
    FROZEN: lisa_layers_attribute relora_cpu_offload jagged_restart_steps jagged_restart_warmup_steps
    FROZEN: jagged_restart_anneal_steps
    preftune does not write to swanlab or comet: comet_project_name comet_workspace swanlab_workspace
    preftune's schedules have no parameters: cosine_min_lr_ratio cosine_constant_lr_ratio lr_quadratic_warmup
    no effect without cpo: cpo_alpha
    no effect without simpo: simpo_gamma
    no effect without orpo: orpo_alpha
    no effect without rl: rl_beta dpo_beta rpo_alpha dpo_label_smoothing kto_desirable_weight kto_undesirable_weight
    no effect without rl: trl vllm
    """
)
OPENRLHF_SAME = _table(
    """
    SPEED: ds.packing_samples ds.attn_implementation ds.use_liger_kernel ds.adam_offload ds.overlap_comm ref.offload
    SPEED: ds.experts_implementation ds.grad_accum_dtype ds.deepcompile data.dataloader_num_workers reward.offload
    SPEED: model.gradient_checkpointing_reentrant actor.gradient_checkpointing_reentrant data.disable_fast_tokenizer
    SPEED: model.compute_fp32_loss_enable disable_fast_tokenizer vllm_sync_backend enforce_eager vllm_enable_sleep
    SPEED: vllm.enforce_eager vllm.gpu_memory_utilization vllm.sync_backend vllm.enable_sleep vllm.sync_with_ray
    SPEED: vllm.enable_prefix_caching ds.enable_sleep train.dynamic_batch_enable train.max_tokens_per_gpu overlap_comm
    SPEED: rollout.micro_batch_size rollout.max_tokens_per_gpu rollout.vllm_generate_batch_size micro_rollout_batch_size
    SPEED: deepspeed_enable_sleep enable_prefix_caching vllm_gpu_memory_utilization use_dynamic_batch grad_accum_dtype
    SHARDING: ds.zero_stage ds.zpg ds.tensor_parallel_size ds.ring_attn_size ds.ring_attn_head_stride local_rank zpg
    SHARDING: ref.num_nodes ref.num_gpus_per_node reward.num_nodes reward.num_gpus_per_node critic.num_nodes
    SHARDING: critic.num_gpus_per_node actor.num_nodes actor.num_gpus_per_node vllm.num_engines ring_attn_size
    SHARDING: vllm.tensor_parallel_size train.colocate_all train.colocate_actor_ref train.colocate_critic_reward
    SHARDING: ref_num_nodes ref_num_gpus_per_node reward_num_nodes reward_num_gpus_per_node critic_num_nodes
    SHARDING: critic_num_gpus_per_node actor_num_nodes actor_num_gpus_per_node vllm_num_engines ring_head_stride
    SHARDING: vllm_tensor_parallel_size colocate_all_models colocate_actor_ref colocate_critic_reward
    SHARDING: ds_tensor_parallel_size
    SHARDING: train.async_enable train.async_queue_size train.partial_rollout_enable
    RESUME: ckpt.path ckpt.load_enable ckpt.save_hf ckpt.disable_ds ckpt.max_num ckpt.max_mem max_ckpt_num max_ckpt_mem
    RESUME: ds.use_universal_ckpt use_universal_ckpt disable_ds_ckpt ckpt.best_metric_key critic.save_value_network
    the head has its own name: ds.value_head_prefix value_head_prefix
    preftune repeats a step bit by bit: train.full_determinism_enable full_determinism
    AdamW has 1e-8 here too: adam.eps
    the last model is the result: eval.split eval_steps data.dataset_split
    preftune scores the responses only: data.multiturn multiturn
    preftune divides the prompts by rollout.prompts: data.label_key
    """
)
OPENRLHF_LOST = _table(
    """
    preftune scores only the responses: model.pretrain_mode_enable
    preftune has adamw and rmsprop: muon.no_nesterov critic.muon.*  actor.muon.*
    QUANTISED: ds.load_in_4bit
    DROPOUT: ds.lora.dropout
    ROWS: data.max_samples
    MIXTURE: data.dataset_probs data.prompt_probs
    write the prompt as chat messages, or as it should be, into the data: data.input_template
    preftune has no auxiliary loss for mixtures of experts: model.aux_loss_coef actor.aux_loss_coef
    preftune has adamw and rmsprop: muon.lr muon.momentum muon.ns_steps muon.nesterov
    preftune scores only what the assistant writes: model.pretrain_mode pretrain_mode
    preftune reads models of the Hugging Face Hub: use_ms
    PPO in preftune has one value for both: actor.eps_clip_low_high actor.dual_clip critic.adam.weight_decay
    PPO in preftune does not have it: actor.policy_loss_type actor.entropy_coef critic.freezing_steps algo.kl.use_loss
    PPO in preftune does not have it: algo.advantage.is_correction_enable algo.advantage.is_correction_threshold
    PPO in preftune does not have it: algo.advantage.is_correction_type algo.advantage.no_std_norm train.enable_ema
    PPO in preftune does not have it: algo.dynamic_filtering_enable algo.dynamic_filtering_range train.ema_beta
    PPO in preftune does not have it: reward.clip_range reward.overlong_buffer_len reward.overlong_penalty_factor
    PPO in preftune does not have it: reward.stop_properly_penalty_coef train.agent_func_path enable_vllm_is_correction
    one schedule for policy and value network: critic.lr_scheduler critic.lr_warmup_ratio critic.max_norm
    preftune evaluates with its monitor: eval.temperature eval.n_samples_per_prompt
    IMAGES: data.image_key data.max_images_per_prompt actor.freeze_visual_encoder
    """
)
SWIFT_SAME = _table(
    """
    SPEED: enable_npu_model_patch device_map packing_num_proc acc_strategy ds3_gather_for_generation max_shard_size
    SHARDING: zero_hpz_partition_size deepspeed_autotp_size
    CACHE: download_mode local_repo_path
    no effect in this method: reward_* teacher_* offload_teacher_model num_ppo_epochs whiten_rewards kl_coef cliprange
    no effect in this method: cliprange_value vf_coef lam num_mini_batches local_rollout_forward_batch_size seq_kd
    no effect in this method: num_sample_generations response_length missing_eos_penalty num_generations lmbda
    no effect in this method: log_completions num_iterations sft_alpha gkd_logits_topk eval_limit extra_eval_args
    no effect in this method: eval_generation_config eval_dataset_args eval_metric eval_dataset mrl_dims problem_type
    no effect with lora: fourier_* boft_* vera_* adapter_* adalora_* llamapro_* reft_* lora_ga_*
    the class follows from the model: num_labels ref_model_type is_binary_loss_scale
    preftune reports every row that it cannot read: strict
    SPEED: attn_impl load_from_cache_file lazy_tokenize sequence_parallel_size vit_gradient_checkpointing tuner_backend
    SPEED: experts_impl use_logits_to_keep padding_side packing_length max_memory dataset_shuffle val_dataset_shuffle
    RESUME: add_version resume_only_model create_checkpoint_symlink ignore_args_error load_args
    NO_REPORT: check_model eval_use_evalscope model_name model_author
    the class follows from the model: model_type task_type use_hf custom_register_path external_plugins
    the class follows from the model: template_backend agent_template use_chat_template
    preftune scores only what the assistant writes: loss_scale
    no effect in this method: temperature max_completion_length max_new_tokens top_p top_k
    """
)
SWIFT_LOST = _table(
    """
    FROZEN: galore_* lisa_* init_strategy use_swift_lora
    preftune does not write to swanlab: swanlab_*
    data.thinking controls reasoning: preserve_thinking add_non_thinking_prefix disable_ignore_empty_think
    set data.columns: disable_auto_column_mapping
    RESUME: use_flash_ckpt load_data_args
    preftune has no callbacks: callbacks
    write reference.path as NAME@REVISION: ref_model_revision
    FROZEN: freeze_llm freeze_parameters freeze_parameters_ratio trainable_parameters target_regex lorap_lr_ratio
    FROZEN: freeze_parameters_regex trainable_parameters_regex init_weights lora_dtype use_galore target_parameters
    IMAGES: freeze_vit freeze_aligner max_pixels vit_lr aligner_lr norm_bbox
    MIXTURE: interleave_prob stopping_strategy shuffle_buffer_size
    set data.columns: columns
    preftune keeps the model's position encoding: rope_scaling max_model_len
    preftune changes no vocabulary: new_special_tokens
    preftune reads raw data: cached_dataset cached_val_dataset custom_dataset_info
    NOT_LOSS: enable_dft_loss enable_channel_loss
    preftune has no auxiliary loss: aligner_loss
    preftune writes complete models: response_prefix model_kwargs
    preftune does not write to swanlab: swanlab_project swanlab_exp_name swanlab_mode
    train.epochs limits the run: max_epochs early_stop_interval
    """
)
