# SM-DSB from a bare machine to a table. `make help` lists what there is. A stopped run goes on with the same command.

DATA     ?= data
BACKBONE ?= dgcnn
SSL      ?= selfdist
SELECT   ?= low
BETA     ?= 0.7
SEED     ?= 0
STEPS    ?=
ARGS     ?=
ARGS2    ?=
STAGES   ?= 2

PY       ?= .venv/bin/python
VENV     := $(if $(filter .venv/bin/python,$(PY)),.venv/.ready)
SIX      := M_S M_SC S_M S_SC SC_M SC_S
TWELVE   := $(foreach a,F M A S,$(foreach b,$(filter-out $(a),F M A S),seg_$(a)_$(b)))
SEGTASKS := $(TWELVE) $(foreach a,F M A S,seg_$(a)_$(a))
SEEDS    ?= 0 1 2

# every setting has a folder of its own: steps and further flags are part of its name when they are given
# task, base, select, seed [beta, ARGS]
squeeze   = $(subst $() $(),,$(subst --,-,$(1)))
DATATAG   = $(if $(filter-out data,$(DATA)),-$(subst /,_,$(subst ../,,$(DATA))))
folder    = runs/$(1)-$(BACKBONE)-$(2)-$(3)-b$(or $(5),$(BETA))-s$(4)$(DATATAG)$(if $(STEPS),-t$(STEPS))$(call squeeze,$(or $(6),$(ARGS))$(ARGS2))
cell      = $(call folder,$(word 1,$(1)),$(word 2,$(1)),$(word 3,$(1)),$(word 4,$(1)))
RUN       = $(call folder,$(TASK),$(SSL),$(SELECT),$(SEED))

# SSL=defrec+pcm is --ssl defrec --pcm; SELECT=all+pcgrad is --select all --mtl pcgrad, all+oracle adds --oracle
parts       = $(subst +, ,$(1))
SSLFLAGS    = --ssl $(word 1,$(call parts,$(SSL))) $(addprefix --,$(word 2,$(call parts,$(SSL))))
OTHER       = $(word 2,$(call parts,$(SELECT)))
SELECTFLAGS = --select $(word 1,$(call parts,$(SELECT))) $(if $(filter oracle,$(OTHER)),--oracle,$(addprefix --mtl ,$(OTHER)))
# no adaptation and the oracle have no pseudo-labels to learn from
STAGE       = $(if $(filter none,$(SSL))$(filter oracle,$(OTHER)),1,$(STAGES))

.PHONY: help all run demo demo_seg table table1 table2 table3 table3-cells study trains bench test data clean $(SIX) $(SEGTASKS)
.DEFAULT_GOAL := help

help:
	@echo "make demo       built-in shapes on a CPU, minutes: both stages, select all against low, a table and a figure"
	@echo "make demo_seg   the same for segmentation, on built-in bodies"
	@echo "make M_S        both stages on PointDA-10; also M_SC S_M S_SC SC_M SC_S; make all runs the six"
	@echo "                [SEED=0 BACKBONE=dgcnn|pointnet SSL=selfdist|defrec|defrec+pcm|gast|mlsp|none BETA=0.7"
	@echo "                 SELECT=low|high|random|all|freeze or with gradient surgery all+pcgrad|all+cagrad|all+cgdm"
	@echo "                 DATA=data|shapes STEPS=... ARGS='--points 512' ARGS2='--gcn-iters 20' STAGES=1|2]"
	@echo "make seg_F_A    both stages on PointSegDA; all pairs of F M A S, seg_F_F too [SSL=defrec|mlsp|none]"
	@echo "make data       fetch PointDA-10 into data/"
	@echo "make table      every finished run under runs/ -> results/table.md, .csv and .png"
	@echo "make table1     the paper's Table I: runs what is missing, then writes results/table1.md"
	@echo "make table2     Table II: PointSegDA"
	@echo "make table3     Table III: PointNet"
	@echo "                [a part of them: METHODS='mlsp-all mlsp-low' TASKS='M_S M_SC' SEEDS='0 1 2']"
	@echo "make study      the same for METHODS of your own, one line a setting and stage -> OUT.md, OUT.csv, OUT.png"
	@echo "make figures    the paper's figures, or one of them: fig1 fig3 fig4 fig5 fig6 fig7 fig8 fig11, and persample (does a"
	@echo "                sample's score predict that its gradient conflicts?) and anm [TASK=M_SC OUT=results/NAME]"
	@echo "make lesson     the figures a lecturer shows, on one sheet: built-in shapes, a CPU, minutes -> results/lesson.png"
	@echo "make trains     do all tasks learn on both backbones, alone and with SM-DSB? 30 steps each -> results/trains.md"
	@echo "make bench      speed and memory on this machine, as ratios -> results/bench.md"
	@echo "make test       the test suite;   make clean   remove caches and the runs on built-in shapes"
	@echo "PY=python uses your own environment in place of .venv"

# ---------------------------------------------------------------- environment
.venv/.ready: requirements.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

EXTRAS = $(if $(VENV),$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-extra.txt)

# ---------------------------------------------------------------- one run: stage 1, stage 2, its row
$(SIX): %: | havedata
	@$(MAKE) --no-print-directory run TASK=$@

# PointSegDA: DefRec is the base unless SSL is given; seg_F_F and the like stay within a domain
SEGSSL = $(if $(filter file,$(origin SSL)),defrec,$(SSL))
$(SEGTASKS): %: | haveseg
	@$(MAKE) --no-print-directory run TASK=$@ SSL=$(SEGSSL)

all: $(SIX)

.PHONY: havedata haveseg
haveseg:
	@[ "$(DATA)" = shapes ] || [ -d "$(DATA)/PointSegDA" ] || { echo "no PointSegDA/ in DATA=$(DATA): github.com/IdanAchituve/DefRec_and_PCM has its address in PointSegDA/data/; or try the built-in bodies with DATA=shapes" >&2; exit 2; }
havedata:
	@[ "$(DATA)" = shapes ] || [ -d "$(DATA)/PointDA_data" ] || { echo "no PointDA_data/ in DATA=$(DATA): fetch it with 'make data', or try the built-in shapes with DATA=shapes" >&2; exit 2; }

run: $(RUN)/stage$(STAGE).pt | $(VENV)
	@$(PY) eval.py --run $(RUN)

$(RUN)/stage1.pt: | $(VENV)
	$(if $(filter pcgrad cagrad,$(OTHER)),@$(EXTRAS))
	$(PY) stage1_ssl.py --task $(TASK) --data $(DATA) --backbone $(BACKBONE) $(SSLFLAGS) $(SELECTFLAGS) --beta $(BETA) --seed $(SEED) $(if $(STEPS),--steps $(STEPS)) $(ARGS) --out $(@D)

$(RUN)/stage2.pt: $(RUN)/stage1.pt | $(VENV)
	$(PY) stage2_pseudo.py --init $< --out $(@D) $(ARGS2)

# run-TASK-SSL-SELECT-SEED: one cell of a table, so that `make -j` runs cells side by side
part = $(word $(1),$(subst -, ,$*))
run-%:
	@$(MAKE) --no-print-directory run TASK=$(call part,1) SSL=$(call part,2) SELECT=$(call part,3) SEED=$(call part,4)

# ---------------------------------------------------------------- tables and figures
DEMO    = SEED=0 BETA=0.7 DATA=shapes TASK=M_SC OUT=results/demo \
	BACKBONE=pointnet SSL=defrec STEPS=100 ARGS="--points 200 --batch-size 32 --eval-every 50" ARGS2="--gcn-iters 20"
DEMOSEG = SEED=0 BETA=0.7 DATA=shapes TASK=seg_F_M OUT=results/demo_seg \
	BACKBONE=dgcnn SSL=defrec STEPS=150 ARGS="--points 256 --batch-size 16 --eval-every 50" ARGS2=
demo: | $(VENV)
	@$(MAKE) --no-print-directory all-and-low $(DEMO)
demo_seg: | $(VENV)
	@$(MAKE) --no-print-directory all-and-low $(DEMOSEG)

.PHONY: all-and-low
all-and-low:
	@$(MAKE) --no-print-directory run SELECT=all
	@$(MAKE) --no-print-directory run SELECT=low
	@$(PY) eval.py --table $(OUT) $(foreach s,all low,$(call folder,$(TASK),$(SSL),$(s),$(SEED)))
	@parts=$(call folder,$(TASK),$(SSL),low,$(SEED))/parts.png; [ ! -e $$parts ] || cp $$parts $(OUT)_parts.png

table: | $(VENV)
	@ls runs/*/result.json > /dev/null 2>&1 || { echo "no finished run under runs/ yet: make demo, or make M_S" >&2; exit 2; }
	@$(PY) eval.py --table results/table $$(dirname runs/*/result.json)

# a method is SSL-SELECT; finished cells are not run again, and `make -j2` runs two at a time
TABLE1 = none-all defrec+pcm-all mlsp-all gast-all gast-low selfdist-all selfdist-low
TABLE3 = none-all $(foreach b,defrec+pcm gast mlsp selfdist,$(b)-all $(b)-low) $(foreach m,random all+pcgrad all+cagrad all+cgdm,defrec+pcm-$(m))
TABLE2 = none-all+oracle none-all $(foreach b,defrec mlsp,$(b)-all $(b)-low)
cells  = $(foreach t,$(or $(TASKS),$(2)),$(foreach m,$(or $(METHODS),$(1)),$(foreach s,$(SEEDS),$(t)-$(m)-$(s))))
runs   = $(foreach c,$(call cells,$(1),$(2)),$(call cell,$(subst -, ,$(c))))

table1: $(addprefix run-,$(call cells,$(TABLE1),$(SIX))) | $(VENV)
	@$(PY) tables.py 1 $(call runs,$(TABLE1),$(SIX))

table2: $(addprefix run-,$(call cells,$(TABLE2),$(TWELVE))) | $(VENV)
	@$(PY) tables.py 2 $(call runs,$(TABLE2),$(TWELVE))

# Table III: PointNet, 20,000 steps, beta .8, unless given
table3:
	@$(MAKE) --no-print-directory table3-cells BACKBONE=pointnet STEPS=$(or $(STEPS),20000) BETA=$(if $(filter file,$(origin BETA)),0.8,$(BETA))
table3-cells: $(addprefix run-,$(call cells,$(TABLE3),$(SIX))) | $(VENV)
	@$(PY) tables.py 3 $(call runs,$(TABLE3),$(SIX))

OUT   ?= results/study
STUDY  = none-all selfdist-all selfdist-low selfdist-random
study: $(addprefix run-,$(call cells,$(STUDY),$(SIX))) | $(VENV)
	@$(PY) eval.py --table $(OUT) $(call runs,$(STUDY),$(SIX))

# ---------------------------------------------------------------- the paper's figures, [TASK=M_SC OUT=results/NAME]
TASK   ?= M_SC
BETAS  ?= 0.3 0.5 0.7 0.9 1
ALPHAS ?= 0 2 4
FIGOUT   = $(if $(filter file,$(origin OUT)),results/$@,$(OUT))
FIGFLAGS = --task $(TASK) --data $(DATA) --backbone $(BACKBONE) $(SSLFLAGS) $(SELECTFLAGS) --beta $(BETA) --seed $(SEED) $(if $(STEPS),--steps $(STEPS)) $(ARGS)
WATCHED  = fig1 persample fig4 fig6
FIGURES  = $(WATCHED) fig3 fig5 fig7 fig8 anm fig11
.PHONY: $(FIGURES) fig9 fig10 figures lesson
fig1 persample fig6: SELECT = all
$(WATCHED): | havedata $(VENV)
	@$(PY) analysis.py $@ $(FIGFLAGS) --out $(FIGOUT)
fig9: fig4
fig10: fig8

# figures of finished runs train what is missing, stage 1 only unless STAGES=2 is given
FIGSTAGES = $(if $(filter file,$(origin STAGES)),1,$(STAGES))
figrun    = $(call folder,$(TASK),$(SSL),$(1),$(SEED))
fig-need-%: | havedata
	@$(MAKE) --no-print-directory run SELECT=$* TASK=$(TASK) STAGES=$(FIGSTAGES)
fig3: fig-need-all fig-need-low
	@$(PY) analysis.py $@ $(call figrun,all) $(call figrun,low) --out $(FIGOUT)
fig5: fig-need-low
	@$(PY) analysis.py $@ --ckpt $(call figrun,low)/stage$(FIGSTAGES).pt --out $(FIGOUT)
fig7: fig-need-low
	@$(PY) analysis.py $@ --init $(call figrun,low)/stage1.pt --seed $(SEED) $(ARGS2) --out $(FIGOUT)
fig11: fig-need-all fig-need-low
	@$(EXTRAS)
	@$(PY) analysis.py $@ --ckpt $(foreach s,all low,$(call figrun,$(s))/stage$(FIGSTAGES).pt) --out $(FIGOUT)

# Fig. 8, 10: every beta at alpha 1, every alpha at the default beta; SEEDS="0 1 2" pools seeds
FIGSEEDS = $(if $(filter file,$(origin SEEDS)),$(SEED),$(SEEDS))
FIG8     = $(foreach s,$(FIGSEEDS),$(foreach b,$(BETAS),$(b)_1_$(s)) $(foreach a,$(ALPHAS),$(BETA)_$(a)_$(s)))
knob     = $(word $(2),$(subst _, ,$(1)))
alpha    = $(strip $(ARGS) $(addprefix --alpha ,$(filter-out 1,$(call knob,$(1),2))))
fig8-%: | havedata
	@$(MAKE) --no-print-directory run SELECT=low TASK=$(TASK) STAGES=$(FIGSTAGES) BETA=$(call knob,$*,1) SEED=$(call knob,$*,3) ARGS="$(call alpha,$*)"
fig8: $(addprefix fig8-,$(sort $(FIG8)))
	@$(PY) analysis.py $@ $(foreach c,$(sort $(FIG8)),$(call folder,$(TASK),$(SSL),low,$(call knob,$(c),3),$(call knob,$(c),1),$(call alpha,$(c)))) --beta $(BETA) --out $(FIGOUT)

CSV ?= results/persample.csv
anm: | $(VENV)
	@[ -e "$(CSV)" ] || $(MAKE) --no-print-directory $(if $(findstring fig1,$(CSV)),fig1,persample) OUT=$(basename $(CSV))
	@$(PY) analysis.py $@ --csv $(CSV) --out $(FIGOUT)

figures:
	@for f in $(FIGURES); do $(MAKE) --no-print-directory $$f || exit; done

# built-in shapes on a CPU: DefRec, whose mild augmentation learns within these steps
lesson: | $(VENV)
	@$(PY) analysis.py $@ --task M_SC --data shapes --backbone pointnet --ssl defrec --seed 0 --steps 100 --points 200 --batch-size 32 --eval-every 10 --every 2 --samples 256 --out results/lesson

trains: | $(VENV)
	@$(PY) trains.py --data $(DATA)

bench: | $(VENV)
	@$(PY) bench.py

# gradient surgery is tested where its library can be had
test: | $(VENV)
	-@$(EXTRAS)
	$(PY) -m pytest -q tests

data: | $(VENV)
	@$(EXTRAS)
	@$(PY) download.py $(DATA)

clean:
	@python3 extras/clean.py
