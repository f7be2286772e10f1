"""Every key of the configuration, with its default. Other configs are deltas of this one.

    from scpo_jax.configs import base

    def get_config():
        config = base.get_config()
        config.scpo.tau = 0.6
        return config

Defaults are the paper's (arXiv 2606.18606). On the command line:
--config.scpo.tau=0.6, --config.data.groups="South Africa,Mexico"
"""

import ml_collections
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The base configuration; it names neither data nor a model, so a config built on it has to."""
    config = ConfigDict()
    config.seed = 0  # the only seed to set; everything drawn at random is derived from it
    config.allow = ()  # guards that would stop the run and may not: names in reports/guards.json
    config.data = data()
    config.model = model()

    config.global_rm = ConfigDict()
    config.global_rm.train = False  # train the global RM first (else config.model is one already)
    config.global_rm.groups = ()  # its training groups, () for all of the data; named ones are not steered
    config.global_rm.max_steps = 1000  # steps of its training
    config.global_rm.learning_rate = 1e-5  # peak rate of AdamW
    config.global_rm.batch_size = 8  # pairs a step

    config.scpo = ConfigDict()
    config.scpo.methods = ("scpo",)  # of scpo, full, filter_only, weight_only, inverse_weight, random_subset,
    # uncertain, uncertain_weighted, trim, trim_weighted, heads (one model of all groups, a score head for each)
    config.scpo.tau = 0.7  # filter: train on a pair iff the global probability of its label is below
    config.scpo.tau_test = 0.5  # the edited test set: pairs with a global probability below
    config.scpo.beta = 1.1  # weight: min(exp((r+ - r-) / beta), 1)
    config.scpo.trim = 0.1  # trim: train on a pair iff the global probability of its label is above
    config.scpo.calibrate = False  # choose tau and beta per group on held-out training users
    config.controls = ()  # RMs trained for comparison, as many pairs each: of pooled, other_country, shuffled

    config.train = train()
    config.per_group = ()  # ((group, key, value), ...) with key of tau, beta, learning_rate, max_steps; the last two
    # say nothing of heads, which all groups train together

    config.mesh = ConfigDict()  # devices along each axis; -1 takes what is left
    config.mesh.data = -1  # share the pairs of a batch
    config.mesh.model = 1  # share the matrices of a layer
    config.mesh.group = 1  # share the groups
    config.mesh.shard_parameters = True  # over data too (FSDP); False needs more memory and communicates less

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 200  # save the training state every so many steps; 0 never
    config.checkpoint.keep = 2  # training states kept

    config.distributed = ConfigDict()
    config.distributed.heartbeat_seconds = 30  # a silent process counts as lost after this, and all end

    config.policy = policy()
    return config


def data() -> ConfigDict:
    """Where preferences come from, how they are grouped and split."""
    config = ConfigDict()
    config.source = "simulated"  # prism, jsonl, global_opinions or simulated
    config.path = ""  # a local file or folder, or a hub id (prism, global_opinions); unused by simulated
    config.revision = ""  # of the hub data set; "" for the newest
    config.group_by = ""  # the field that names a pair's group; "" for the source's own, "none" for one group "all"
    config.groups = ()  # groups to steer; () for all
    config.min_users = 0  # with groups=(): leave out groups of fewer users
    config.columns = ConfigDict({name: name for name in JSONL_COLUMNS})  # jsonl: our name -> the file's
    config.max_dropped = 0.2  # stop when more than this share of the rows is unusable
    config.test_size = 0.15  # share of users (batteries for global_opinions) in the test split
    config.split_seed = -1  # seed of that split; -1 derives it from config.seed
    config.min_share_gap = 0.1  # global_opinions: two options make a pair if their shares differ by as much
    config.max_pairs_per_cell = 6  # global_opinions: pairs of a question and country at most
    config.length_quantiles = PRISM_LENGTHS  # preflight, where there are no data: tokens of texts, evenly spaced shares
    config.simulated = ConfigDict()
    config.simulated.users_per_group = 200  # of a minority country; a majority one has three times as many
    config.simulated.cultural_strength = 1.0  # scale of the differences between groups; 0 is the null world
    config.simulated.extreme_share = 0.15  # share of annotators who reverse the universal attributes
    config.simulated.seed = -1  # -1 derives it from config.seed
    return config


JSONL_COLUMNS = (
    "prompt", "chosen", "rejected", "group", "user_id", "interaction_id", "pair_id", "chosen_id", "rejected_id",
    "margin",
)  # fmt: skip


# Percentiles 0 to 100 of the lengths of 8,418 texts of PRISM, prompt and response, by the tokenizer of all-MiniLM-L6-v2
# with its special tokens, cut to 512 (mean 126). The conversations of other configs may be longer.
PRISM_LENGTHS = (
    8, 15, 20, 24, 28, 32, 36, 39, 42, 46, 49, 51, 53, 55, 58, 59, 61, 62, 64, 65, 66, 68, 69, 70, 71, 72, 73, 74,
    75, 76, 77, 78, 80, 81, 82, 83, 85, 86, 87, 89, 90, 91, 93, 94, 96, 97, 98, 100, 102, 103, 105, 106, 108, 110,
    112, 114, 116, 119, 121, 124, 126, 129, 131, 134, 136, 140, 143, 147, 150, 155, 158, 162, 166, 170, 174, 177,
    180, 182, 185, 187, 190, 192, 195, 197, 201, 204, 209, 213, 219, 226, 235, 247, 257, 262, 267, 270, 274, 279,
    286, 310, 512,
)  # fmt: skip


def model() -> ConfigDict:
    """The reward model that training starts from."""
    config = ConfigDict()
    config.name_or_path = ""  # hub id, Hugging Face folder or our checkpoint; "" starts from scratch (see scratch)
    config.revision = ""  # of the hub model; "" for the newest
    config.fresh_head = False  # draw a new score head for a model that has none
    config.max_length = 512  # tokens of prompt and response together
    config.dtype = "float32"  # compute type, float32 or bfloat16; parameters and scores are float32
    config.encoding = "pair"  # pair (of causal models the conversation), or reference: the authors' two formats
    config.scratch = ConfigDict()  # random weights and a tokenizer made of the training texts
    config.scratch.family = "bert"  # bert, or the causal llama
    config.scratch.vocab_size = 2048  # most frequent words kept; any other falls apart into characters
    config.scratch.hidden_size = 64  # width of a token
    config.scratch.num_hidden_layers = 2  # depth
    config.scratch.num_attention_heads = 4  # has to divide hidden_size
    config.scratch.intermediate_size = 256  # width inside the feed-forward layers
    config.scratch.dropout = 0.1  # of a BERT's hidden states and attention, in training only
    return config


def train() -> ConfigDict:
    """How the RM of a group is trained; global_rm uses all but the rate, the steps and the batch size as well."""
    config = ConfigDict()
    config.batch_size = 8  # pairs a step
    config.max_steps = 1024  # steps of a training; they override epochs. Of heads times the number of groups
    config.learning_rate = 1e-6  # peak rate of AdamW(0.9, 0.999, eps 1e-8)
    config.warmup_steps = 0  # linear rise of the rate
    config.schedule = "linear"  # decay to 0 at max_steps: linear or cosine; or constant
    config.weight_decay = 0.0  # of AdamW, on all parameters
    config.max_grad_norm = 1.0  # clip the global gradient norm; 0 does not
    config.max_skipped = 10  # a step whose loss or gradient is not finite is skipped; so many in a row end the training
    config.center_rewards_coefficient = 0.0  # c of c * mean((R+ + R-)^2)
    config.remat = False  # compute layers again in the backward pass: less memory, about a third more time
    config.groups_per_program = 8  # groups trained at once; memory grows with them; -1 takes all
    config.eval_every = 0  # validate every so many steps, keep the best (one-standard-error rule); 0 keeps the last
    config.validation_size = 0.15  # share of a group's training users held out for it, if eval_every > 0
    config.lora = ConfigDict()  # low-rank adapters of the groups' RMs; the global RM is trained whole in any case
    config.lora.rank = 0  # of the adapters; 0: no adapters, all parameters are trained
    config.lora.alpha = 16.0  # what the adapters say counts alpha / rank
    config.lora.targets = ("all-linear",)  # linear maps by their PEFT names (q_proj, v_proj, ...), or all but the head
    config.lora.dropout = 0.0  # of the adapters' inputs, in training only; for causal models
    config.batch_order = "shuffled"  # shuffled (by config.seed), or reference: the authors' order, for parity
    return config


def policy() -> ConfigDict:
    """The language model that is trained against a group's RM, after `scpo sft`; names are trl's where it has them."""
    config = ConfigDict()
    config.algorithm = "ppo"  # ppo (arXiv 1707.06347), rloo (2402.14740) or grpo (2402.03300)
    config.steps = 0  # iterations, each of batch_size fresh responses; 0 trains no policy
    config.groups = ()  # a policy for each of these groups; () for all that are steered
    config.tag = False  # one policy for all of them: prompts begin with the group, its own RM judges the response
    config.method = "scpo"  # whose RMs judge; global for the global RM
    config.profile = ""  # judge by this blend of them instead, whatever the group: Chile=0.7,Mexico=0.3
    config.prompts = ""  # a file with `prompt` (JSON lines, CSV, Parquet); "" for those of the group's train users
    config.reference_samples = 256  # responses of the reference whose scores are normalised to mean 0 and deviation 1
    config.batch_size = 64  # responses an iteration
    config.num_generations = 4  # rloo, grpo: responses to a prompt, which are compared
    config.num_mini_batches = 4  # parts of a batch that a gradient step each is made on
    config.num_ppo_epochs = 4  # how often each is
    config.learning_rate = 3e-6  # at the beginning, of Adam(0.9, 0.999, eps 1e-5); then a linear decay to 0
    config.kl_coef = 0.05  # weight of KL(policy || reference) against a unit of normalised score
    config.kl_estimator = "k1"  # of the KL of a token: k1 = log pi / pi_ref, k3 = pi_ref / pi - 1 - log pi_ref / pi
    config.kl_target = 0.0  # adapt kl_coef so that KL comes to this, nats per response (arXiv 1909.08593); 0 does not
    config.kl_horizon = 10_000  # responses in which kl_coef adapts
    config.kl_budget = ml_collections.config_dict.placeholder(float)  # stop at this KL, nats per response
    config.missing_eos_penalty = 1.0  # taken off the normalised score of a response that was cut off
    config.cliprange = 0.2  # of the ratio pi / pi_old around 1
    config.cliprange_value = 0.2  # ppo: of a value around that before the update
    config.vf_coef = 0.1  # ppo: weight of the value loss
    config.gamma = 1.0  # ppo: discount of a token
    config.gae_lambda = 0.95  # ppo: of generalised advantage estimation (arXiv 1506.02438)
    config.value = "own"  # ppo: values come from a backbone of their own, or from a head on the policy's
    config.value_warmup_steps = 0  # ppo: first iterations in which the values alone are learnt
    config.lora = ConfigDict()  # low-rank adapters of policy and value model; the reference is the model without them
    config.lora.rank = 0  # 0: no adapters, all parameters are trained
    config.lora.alpha = 16.0  # what the adapters say counts alpha / rank
    config.lora.targets = ("all-linear",)  # linear maps by their PEFT names, or all but the heads
    config.remat = False  # compute layers again in the backward pass: less memory, about a third more time
    config.name_or_path = ""  # causal language model: hub id, Hugging Face folder or our checkpoint; "" is from scratch
    config.revision = ""  # of the hub model; "" for the newest
    config.max_prompt = 256  # tokens of a prompt; a longer one loses its first
    config.new_tokens = 128  # tokens of a response at most
    config.dtype = "float32"  # compute type, float32 or bfloat16; parameters and log-probabilities are float32
    config.scratch = ConfigDict()  # a Llama with random weights and a tokenizer made of the training texts
    config.scratch.vocab_size = 2048  # most frequent words kept, with all bytes; any other word falls apart into these
    config.scratch.hidden_size = 64  # width of a token
    config.scratch.num_hidden_layers = 2  # depth
    config.scratch.num_attention_heads = 4  # has to divide hidden_size
    config.scratch.num_key_value_heads = 2  # has to divide num_attention_heads
    config.scratch.intermediate_size = 128  # width inside the feed-forward layers
    config.scratch.tie_word_embeddings = True  # the words' embeddings are the head as well
    config.sft = ConfigDict()  # scpo sft: next-token loss on the responses of training pairs
    config.sft.groups = ()  # of these groups; () for all
    config.sft.responses = "chosen"  # chosen, rejected or both
    config.sft.max_steps = 1000  # steps of the training; 0: PPO starts from name_or_path as it is
    config.sft.batch_size = 32  # responses a step
    config.sft.learning_rate = 1e-3  # peak rate of AdamW(0.9, 0.999, eps 1e-8), then a linear decay to 0
    config.sft.warmup_steps = 20  # linear rise of the rate
    return config
