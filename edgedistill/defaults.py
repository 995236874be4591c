"""The one place where defaults live. The verbs' signatures and the command line both read them here."""

from __future__ import annotations

RUN = "runs/default"
SEED = 0
READINGS = "benchmarks/test_readings.jsonl"  # of a checkout: what was counted on test rows, and when

# teach
TEACHER = "smollm2-135m"     # the card of the embedded teacher
TASK = "wordmath"
LIMIT = 240                  # training rows taught; sized so that the three lines end within 15 minutes on 2 cores
SAMPLES = 1
PARALLEL_DETERMINISTIC = 16  # sequences of --deterministic; fixed, so that a text does not depend on a measurement
PARALLEL_SERVER = 8          # requests in flight with --url
TEMP = 0.0                   # greedy: one sample a row needs no variety
SAMPLED_TEMP = 0.7           # when --samples asks for several and no --temp is given
TOP_K = 40
TOP_P = 0.95
MIN_P = 0.05
DEV_SHARE = 0.1              # of the training rows, where a data set has no dev split

# train
TINY = "t5-small"            # what --tiny takes when the hub or its cache has it
METHOD = "step-by-step"
EPOCHS = 8
BATCH_SIZE = 16              # questions a step; step-by-step has two targets for one question
FACTORS = 3                  # of reparam's linear chains, 1 to 3: the thesis's best
ALPHA = 0.5                  # weight of the label's loss, the value of the paper's code
WARMUP_SHARE = 0.05
BATCH_TOKENS = {"cuda": 8192, "cpu": 2048}  # tokens of a micro-batch; a step is as many of them as its questions need
ANSWERED_TOGETHER = {"cuda": 256, "cpu": 64}  # rows that are answered side by side
ANSWERED_TOKENS = 8192       # of their questions, read in one go
ANSWERED_PLACES = 32768      # for keys and values: SmolLM2-135M has 46 KB for each in fp32 (1.5 GB), half of it in bf16
ANSWERED_FIRST = 64          # T5: tokens after which answers that have ended leave their batch; then twice as many each time
WEIGHTING = "token"
BESIDE_STEPS = 1.4           # a training's time over its steps' alone: optimizer, dev rows, checkpoints; about
TEMPERATURE = 2.0            # logit-kd: Lee's best for the smaller students are 2 and 3
# specialize: how often each format is drawn. The paper's mix of micro-batches is 0.60 in-context, 0.38 zero-shot, 0.02
# answers alone; worked examples cost six times the tokens, so here most questions come without.
FORMATS = {"zero-shot": 0.75, "in-context": 0.15, "zero-shot-answer": 0.05, "in-context-answer": 0.05}
# hybrid, each part a switch (benchmarks/studies/hybrid-ablation.toml takes them off in turn)
RESAMPLE = 0.5               # of the draws of an equation row have fresh numbers
MENTOR_SHARE = 0.5           # of the loss, where a mentor is named
AVERAGE_POWER = 2            # --average: step t counts with t to this power (train/average.py)
ROUNDS = 0                   # of self-training; each costs a training more, and only rows without a label gain by it
SELF_SAMPLES = 8             # answers to a question without a label
SELF_SHARE = 0.75            # of them that must come to one value
SHOTS = 4                    # worked examples before a question of specialize, as in the paper
CHECKPOINT_MINUTES = 15      # a checkpoint at least so often, besides one an epoch
GENERAL_BYTES = 65_536       # of a general text whose perplexity is watched
OOD_ROWS = 200               # dev rows of another task that are watched, at most
# 8-bit state pays where memory is short; on a CPU it costs half a step's time again (benchmarks/LOG.md).
OPTIMIZER = {"cuda": "adamw8bit", "cpu": "adamw"}
LEARNING_RATE = {"t5": 1e-3, "decoder": 3e-4}  # t5: scratch or v1.1 want more than the paper's 5e-5
ADAFACTOR_RATE = 1e-3        # a share of each matrix's own size: T5's fine-tuning rate; 1e-2 to learn from nothing
CARVE_LAYERS = 16            # of SmolLM2's 30: about 57M parameters
CARVE_MIN_LAYERS = 8         # fewer lose the ability to learn the task (Study issue's trials)
VOCABULARY = 4096            # pieces of a carved student: the corpus's own, then the most common ones

# export
PRECISION = "int8"
TARGET = "portable"
LAYOUT = "edge"
MAX_DROP = {"int8": 1.5, "int4": 3.0}        # points of dev accuracy that quantizing may cost
MIN_AGREEMENT = {"int8": 0.99, "int4": 0.9}  # token agreement under which sensitive products are kept high
# Which products, one set tried after the other. qkv's errors go through an exponential (benchmarks/LOG.md); the FFN's last
# product has the largest activations.
KEEP_HIGH = {"int8": ((), ("qkv",)),
             "int4": ((), ("embed", "head"), ("embed", "head", "qkv", "cross_q"),
                      ("embed", "head", "qkv", "cross_q", "down", "wo"),
                      ("embed", "head", "qkv", "cross_q", "down", "wo", "o", "cross_o"))}
FEEDBACK_ROWS = 128          # training questions by whose inputs 4-bit weights are rounded
PARITY_INPUTS = 50           # inputs on which the fp32 graph must repeat torch's greedy tokens

# run
VOTE_TEMP = 0.7              # of the samples that vote

# bench
BENCH_RUNS = 100             # rounds, and questions asked at most

# study
VERIFY_TOLERANCE = 0.02      # of the accuracy of a cell that is run again: other threads or versions round differently
