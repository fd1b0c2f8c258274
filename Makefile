# SM-DSB from a bare machine to a table. `make help` lists what there is. A stopped run goes on with the same command.

DATA   ?= data
STAGES ?= 2
TASK   ?= M_SC
SEED   ?= 0
SEEDS  ?= 0 1 2
OUT    ?=
override DATA := $(patsubst ~/%,$(HOME)/%,$(DATA))
export OMP_WAIT_POLICY ?= passive

PY   ?= .venv/bin/python
VENV := $(if $(filter .venv/bin/python,$(PY)),.venv/.ready)
SUB  := +@$(MAKE) --no-print-directory

SIX    := M_S M_SC S_M S_SC SC_M SC_S
TWELVE := $(foreach a,F M A S,$(foreach b,$(filter-out $(a),F M A S),seg_$(a)_$(b)))
BOUNDS := M_M S_S SC_SC $(foreach a,F M A S,seg_$(a)_$(a))

# what is given on the command line goes to the scripts, which know the defaults; SELECT=all+pcgrad is --select all --mtl pcgrad
parts  = $(subst +, ,$(1))
WHERE  = --task $(TASK) --data "$(DATA)"
KNOBS  = $(addprefix --backbone ,$(BACKBONE)) $(addprefix --beta ,$(BETA)) $(addprefix --steps ,$(STEPS)) $(ARGS)
SELECT_FLAGS = $(addprefix --select ,$(word 1,$(call parts,$(SELECT)))) $(addprefix --mtl ,$(word 2,$(call parts,$(SELECT))))
COMMON = --data "$(DATA)" $(KNOBS)
FLAGS  = $(WHERE) $(KNOBS) $(addprefix --ssl ,$(SSL)) $(SELECT_FLAGS) --seed $(SEED)
folder = $$("$(PY)" stage1_ssl.py $(FLAGS) $(1) --print-out="$(ARGS2)")

.PHONY: help adapt predict all run demo demo_seg side-by-side table table1 table2 table3 study cells figures lesson learns trains bench test lint data clean havedata haveseg
.PHONY: verify rerun chaos hostile controls leaks platforms
.PHONY: $(SIX) $(TWELVE) $(BOUNDS)
.DEFAULT_GOAL := help

help:
	@echo "make demo       built-in shapes on a CPU, 5 minutes: both stages, select all against low, a table and a figure"
	@echo "make demo_seg   the same for segmentation, on built-in bodies, beside no adaptation"
	@echo "make M_S        both stages on PointDA-10; also M_SC S_M S_SC SC_M SC_S; make all runs the six"
	@echo "                [SEED=0 BACKBONE=dgcnn|pointnet|pointnet2|pct|pointdan SSL=selfdist|defrec|gast|mlsp|contrast|implicit|none BETA=0.7"
	@echo "                 SELECT=low|high|random|all|freeze or with a comparator all+pcgrad ..., see docs/comparators.md"
	@echo "                 DATA=data|shapes STEPS=... ARGS='--points 512' ARGS2='--gcn-iters 20' STAGES=1|2]"
	@echo "make S_S        the oracle: supervised on the target, a bound; also M_M SC_SC seg_A_A ..."
	@echo "make seg_F_A    both stages on PointSegDA; all pairs of F M A S [SSL=defrec|mlsp|none]"
	@echo "make adapt      SOURCE=models TARGET=scans: both stages on your own clouds, then a csv of predictions; docs/own-data.md"
	@echo "make predict    CLOUDS=folder CKPT=runs/NAME/stage2.pt [OUT=predictions]: class, confidence, skewness of each cloud"
	@echo "make data       fetch PointDA-10 into data/"
	@echo "make table      every finished run under runs/ -> results/table.md, .csv and .png"
	@echo "make table1     the paper's Table I: runs what is missing, then writes results/table1.md"
	@echo "make table2     Table II: PointSegDA"
	@echo "make table3     Table III: PointNet"
	@echo "                [a part of them: METHODS='mlsp-all mlsp-low' TASKS='M_S M_SC' SEEDS='0 1 2']"
	@echo "make study      the same for METHODS of your own, one line a setting and stage -> OUT.md, OUT.csv, OUT.png"
	@echo "make figures    the paper's figures, or one of them: fig1 fig3 fig4 fig5 fig6 fig7 fig8 fig11, and persample (does a"
	@echo "                sample's score predict that its gradient conflicts?), anm and measure [TASK=M_SC OUT=results/NAME]"
	@echo "make claims     Figure 1 and persample over SEEDS;  make noise: a known share of wrong pseudo-labels [TRAIN=1]"
	@echo "make validators what a choice of the checkpoint without target labels costs, over all finished runs"
	@echo "make lesson     the figures a lecturer shows, on one sheet: built-in shapes, a CPU, 10 minutes -> results/lesson/ [HTML=1]"
	@echo "make trains     do all tasks learn on both backbones, alone and with SM-DSB? 30 steps each -> results/small/learns.md"
	@echo "make bench      speed and memory on this machine, as ratios -> results/speed/bench.md [DEVICE=cuda ARGS='--only encoder']"
	@echo "make verify     RUN=runs/NAME: are its numbers those of its weights?   make rerun RUN=...   train it again, bit for bit?"
	@echo "make controls   shuffled labels fall to chance, labels are what their names say;   make leaks   no label of the target"
	@echo "                reaches a weight, in any setting -> results/reliability/"
	@echo "make chaos      both stages killed 25 times and hindered, then compared bit for bit -> results/reliability/"
	@echo "make hostile    900 broken and hostile files, flags and archives, each refused in a line -> results/reliability/"
	@echo "make test       the test suite;   make lint   style;   make platforms   the suite under each Python and torch that is found"
	@echo "make clean      remove caches and the runs on built-in shapes"
	@echo "PYTHON=python3.12 makes .venv by another Python; PY=python uses your own environment in place of .venv"

# ---------------------------------------------------------------- environment
# .venv is made by PYTHON, and anew where that was stopped, where its Python is gone, or is not the PYTHON that is given
PYTHON ?= python3
version = $(shell "$(1)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
HAVE   := $(if $(and $(VENV),$(wildcard .venv/.ready)),$(or $(call version,.venv/bin/python),none))
ASKED  := $(if $(and $(HAVE),$(filter-out file,$(origin PYTHON))),$(call version,$(PYTHON)),$(HAVE))
AFRESH := $(if $(filter-out none,$(HAVE)),$(if $(filter $(HAVE),$(ASKED)),,afresh),afresh)
NEW    := "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "$(PYTHON) is no Python 3.11 or newer; name one that is: PYTHON=python3.12 make $(or $(MAKECMDGOALS),demo)" >&2; exit 2; }
.PHONY: afresh
afresh:
.venv/.ready: requirements.txt $(AFRESH)
	$(if $(AFRESH),@$(NEW))
	$(if $(AFRESH),"$(PYTHON)" -m venv --clear .venv)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

EXTRAS = $(if $(VENV),"$(PY)" -m pip install --quiet --disable-pip-version-check -r requirements-extra.txt)

# ---------------------------------------------------------------- one run: stage 1, stage 2, its row
$(SIX): %: | havedata
	$(SUB) run TASK=$@

# DefRec is the base on PointSegDA unless SSL is given
$(TWELVE): %: | haveseg
	$(SUB) run TASK=$@ SSL=$(or $(SSL),defrec)

$(BOUNDS): %:
	$(SUB) $(if $(filter seg_%,$@),haveseg,havedata)
	$(SUB) run TASK=$@ SSL=$(or $(SSL),none)

all: $(SIX)

# a set that is not there, or lies one level off, is said before anything is installed
have = @[ "$(DATA)" = shapes ] || [ -d "$(DATA)/$(1)" ] || { near=$$(ls -d "$(DATA)"/../$(1) "$(DATA)"/*/$(1) 2>/dev/null | head -n 1); \
	[ -z "$$near" ] || { echo "no $(1)/ in DATA=$(DATA), but $$near is there: give DATA='$$(cd "$$near/.." && pwd -P)'" >&2; exit 2; }; \
	echo "no $(1)/ in DATA=$(DATA): $(2); or try the built-in $(3) with DATA=shapes" >&2; exit 2; }
haveseg:
	$(call have,PointSegDA,github.com/IdanAchituve/DefRec_and_PCM has its address in PointSegDA/data/,bodies)
havedata:
	$(call have,PointDA_data,fetch it with 'make data',shapes)

# no adaptation and the oracle have no pseudo-labels to learn from; a finished stage says so and stops
ONE_STAGE = $(filter none,$(SSL))$(filter 1,$(STAGES))$(filter $(BOUNDS),$(TASK))
run: | $(VENV)
	$(if $(filter pcgrad cagrad mgda upgrad alignedmtl,$(call parts,$(SELECT))),@$(EXTRAS))
	@set -e; run="$(folder)"; \
	echo "$$run"; \
	"$(PY)" stage1_ssl.py $(FLAGS) --out "$$run"; \
	$(if $(ONE_STAGE),,"$(PY)" stage2_pseudo.py --init "$$run/stage1.pt" $(ARGS2);) \
	$(if $(PREDICT),"$(PY)" extras/my_cloud.py "$(TARGET)" --ckpt "$$run/stage$(if $(ONE_STAGE),1,2).pt" --out "$$run";) \
	"$(PY)" eval.py --run "$$run"

# own clouds: both stages, the predictions for all of the target, and scores where it has labels
adapt: | $(VENV)
	@[ -n "$(SOURCE)" ] && [ -n "$(TARGET)" ] || { echo 'give your folders: make adapt SOURCE=models TARGET=scans; see docs/own-data.md' >&2; exit 2; }
	$(SUB) run WHERE='--source "$(SOURCE)" --target "$(TARGET)"' PREDICT=1

predict: | $(VENV)
	@[ -n "$(CLOUDS)" ] && [ -n "$(CKPT)" ] || { echo 'give clouds and a checkpoint: make predict CLOUDS=scans CKPT=runs/NAME/stage2.pt' >&2; exit 2; }
	$(if $(findstring --html,$(ARGS)),@$(EXTRAS))
	@"$(PY)" extras/my_cloud.py "$(CLOUDS)" --ckpt "$(CKPT)" --out "$(or $(OUT),predictions)" $(ARGS)

# run-TASK-SSL-SELECT-SEED[-BETA]: one cell of a table, so that `make -j2` runs cells side by side
part = $(word $(1),$(subst -, ,$*))
run-%:
	$(SUB) run TASK=$(call part,1) SSL=$(call part,2) SELECT=$(call part,3) SEED=$(call part,4) BETA=$(or $(call part,5),$(BETA))

# ---------------------------------------------------------------- tables: cells that are finished are not run again
STAGES_GIVEN = $(if $(filter file,$(origin STAGES)),,$(STAGES))
CELLS = $(COMMON) $(addprefix --methods ,$(METHODS)) $(addprefix --tasks ,$(TASKS)) --seeds $(SEEDS) $(addprefix --stages ,$(STAGES_GIVEN)) --stage2="$(ARGS2)"
table1 table2 study: | $(VENV)
	$(SUB) cells TABLE=$@
table3: | $(VENV)
	$(SUB) cells TABLE=$@ BACKBONE=pointnet STEPS=$(or $(STEPS),20000) STAGES=$(or $(STAGES_GIVEN),1)
cells:
	+@cells="$$("$(PY)" -m paper cells $(TABLE) $(CELLS))" && { [ -z "$$cells" ] || $(MAKE) --no-print-directory $$cells; }
	@"$(PY)" -m paper $(TABLE) $(CELLS) $(addprefix --out ,$(OUT))

table: | $(VENV)
	@"$(PY)" -m paper table $(addprefix --out ,$(OUT))

# built-in shapes, a thread for each run; few points, so that source validation ends above 90 % within minutes. A GCN is
# left out: so early, it makes labels confident that are half wrong, and the source is lost again (80 to 97 % were seen)
DEMO = $(SUB) side-by-side DATA=shapes SSL= SELECT= BETA= SEED=0
demo: | $(VENV)
	$(DEMO) OUT=results/demo/demo TASK=M_SC METHODS="defrec-all defrec-low" BACKBONE=pointnet STEPS=400 \
	ARGS="--points 64 --batch-size 64 --eval-every 50" ARGS2="--steps 200 --eval-every 50 --gcn-iters 0"
demo_seg: | $(VENV)
	$(DEMO) OUT=results/demo/demo_seg TASK=seg_F_M METHODS="none-all defrec-all defrec-low" BACKBONE= STEPS=300 \
	ARGS="--points 256 --batch-size 16 --eval-every 50" ARGS2="--steps 150 --eval-every 50"
side-by-side:
	@"$(PY)" -m extras.side_by_side --methods $(METHODS) --stage2="$(ARGS2)" $(FLAGS)
	@"$(PY)" -m paper study $(COMMON) --methods $(METHODS) --tasks $(TASK) --seeds $(SEED) --stage2="$(ARGS2)" --out $(OUT)
	@$(if $(filter seg_%,$(TASK)),cp "$(call folder,--ssl defrec --select low)/parts.png" $(OUT)_parts.png)
	@echo "One seed shows what each stage does to a run; it cannot show which method is better, as another seed moves each run by points: see make study."

# ---------------------------------------------------------------- the paper's figures, [TASK=M_SC OUT=results/NAME]
BETAS  ?= 0.3 0.5 0.7 0.9 1
ALPHAS ?= 0 2 4
LOOKS   = fig1 persample both fig4 fig6 measure
FIGURES = $(filter-out both measure,$(LOOKS)) fig3 fig5 fig7 fig8 anm fig11
TO      = $(addprefix --out ,$(OUT))
.PHONY: $(LOOKS) $(FIGURES) fig9 fig10 claims noise validators
$(LOOKS): | havedata $(VENV)
	@"$(PY)" -m paper $@ $(FLAGS) $(TO)
fig9: fig4
fig10: fig8

# figures of finished runs train what is missing, stage 1 only unless STAGES=2 is given
FIG_STAGES = $(if $(filter file,$(origin STAGES)),1,$(STAGES))
NEED = $(MAKE) --no-print-directory run STAGES=$(FIG_STAGES)
fig3: | havedata
	@$(NEED) SELECT=all && $(NEED) SELECT=low
	@"$(PY)" -m paper $@ "$(call folder,--select all)" "$(call folder,--select low)" $(TO)
fig5: | havedata
	@$(NEED) SELECT=low
	@"$(PY)" -m paper $@ --ckpt "$(call folder,--select low)/stage$(FIG_STAGES).pt" $(TO)
fig7: | havedata
	@$(NEED) SELECT=low
	@"$(PY)" -m paper $@ --init "$(call folder,--select low)/stage1.pt" --seed $(SEED) $(ARGS2) $(TO)
fig11: | havedata
	@$(NEED) SELECT=all && $(NEED) SELECT=low
	@$(EXTRAS)
	@"$(PY)" -m paper $@ --ckpt "$(call folder,--select all)/stage$(FIG_STAGES).pt" "$(call folder,--select low)/stage$(FIG_STAGES).pt" $(TO)

# Fig. 8, 10: every beta at alpha 1, every alpha at the default beta; SEEDS="0 1 2" pools seeds
FIG_SEEDS = $(if $(filter file,$(origin SEEDS)),$(SEED),$(SEEDS))
fig8: | havedata
	@set -e; runs=; for s in $(FIG_SEEDS); do for knob in $(addprefix --beta=,$(BETAS)) $(addprefix --alpha=,$(ALPHAS)); do \
	$(NEED) SELECT=low SEED=$$s ARGS="$(ARGS) $$knob"; \
	runs="$$runs $(call folder,--select low --seed $$s $$knob)"; done; done; \
	"$(PY)" -m paper $@ $$runs $(TO)

CSV ?= results/figures/persample.csv
anm: | $(VENV)
	@[ -e "$(CSV)" ] || $(MAKE) --no-print-directory $(if $(findstring fig1,$(CSV)),fig1,persample) OUT="$(basename $(CSV))"
	@"$(PY)" -m paper $@ --csv "$(CSV)" $(TO)

# Fig. 1 and persample of one run for each seed, those that are not yet there, then all seeds together
claim_of = results/figures/$(TASK)-$(or $(SSL),selfdist)-s$(1)
claims: | havedata $(VENV)
	@set -e; for s in $(SEEDS); do [ -e "$(call claim_of,$$s)-persample.json" ] || \
	"$(PY)" -m paper both $(FLAGS) --seed $$s --out "$(call claim_of,$$s)"; done
	@"$(PY)" -m paper $@ results/figures/*.json $(TO)

# stage 2 from wrong pseudo-labels, a known share of them; TRAIN=1 trains it, too
noise: | havedata
	@$(NEED) SELECT=low
	@"$(PY)" -m paper $@ --init "$(call folder,--select low)/stage1.pt" $(if $(TRAIN),--train) $(ARGS2) $(TO)

validators: | $(VENV)
	@"$(PY)" -m paper $@ $(TO)

figures:
	@for f in $(FIGURES); do $(MAKE) --no-print-directory $$f || exit; done

# trained to above 90 % on the source, twice, and looked at on the way; 128 points, which still recognises its maps' 1024
lesson: | $(VENV)
	@"$(PY)" -m paper $@ --task M_SC --data shapes --backbone pointnet --ssl defrec --seed 0 --steps 350 --points 128 --batch-size 64 \
	--eval-every 35 --every 10 --scored 128 --samples 256 --out results/lesson/lesson
	$(if $(HTML),@$(EXTRAS))
	$(if $(HTML),@"$(PY)" -m extras.page results/lesson/lesson-maps.npz results/lesson/lesson.html)

# ---------------------------------------------------------------- the rest
trains learns: | $(VENV)
	@"$(PY)" extras/learns.py --data "$(DATA)"

bench: | $(VENV)
	@"$(PY)" extras/bench.py $(addprefix --device ,$(DEVICE)) $(ARGS)

# gradient surgery is tested where its library can be had
test: | $(VENV)
	-@$(EXTRAS)
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -q -n auto --dist loadfile tests

lint: | $(VENV)
	@$(EXTRAS)
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .

# a run against its own files: numbers from weights and data; or trained again, bit for bit
verify rerun: | $(VENV)
	@[ -n "$(RUN)" ] || { echo 'give a run: make $@ RUN=runs/NAME' >&2; exit 2; }
	@"$(PY)" -m extras.verify --run "$(RUN)" $(if $(filter rerun,$@),--again) $(addprefix --out ,$(OUT)) $(ARGS)

controls: | $(VENV)
	@"$(PY)" -m extras.controls $(if $(filter command environment,$(firstword $(origin DATA))),--data "$(DATA)") $(addprefix --out ,$(OUT)) $(ARGS)

chaos hostile: | $(VENV)
	@OMP_NUM_THREADS=1 "$(PY)" extras/$@.py $(addprefix --out ,$(OUT)) $(ARGS)

leaks: | $(VENV)
	@$(EXTRAS)
	@"$(PY)" -m extras.leaks $(addprefix --out ,$(OUT)) $(ARGS)

platforms:
	@extras/platforms.sh $(ARGS)

data: | $(VENV)
	@$(EXTRAS)
	@"$(PY)" -m datasets.download "$(DATA)"

clean:
	@"$(PYTHON)" extras/clean.py
