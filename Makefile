# The commands of a contributor; each sets up what it needs. The README tells what they do.
.PHONY: demo test model-check soak hardware-test bench lint format docs clean help

demo: ## set-up, then the main job on the simulated machine
	@Tests/setup packages
	@swift run -c release iommuctl --simulated demo

test: ## set-up, then every test that needs no root and no virtual machine
	@Tests/run-tests

model-check: ## random traces against the naive model; STEPS=… SEED=…
	@Tests/setup packages
	@Tests/Soak/check model $(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED))

soak: ## the long forms: stress under ThreadSanitizer, 10^7 steps of the model check, 10^5 that look for stale access, 10^7 runs a fuzz target
	@Tests/setup packages
	@Tests/Stress/check --long
	@Tests/Soak/check model --steps 10000000
	@Tests/Soak/check stale --steps 100000
	@Tests/Soak/check fuzz --runs 10000000

hardware-test: ## the suites in virtual machines with a real kernel; MACHINES="a b"
	@Tests/VirtualHardware/hardware-test $(if $(MACHINES),--machines "$(MACHINES)")

bench: ## benchmarks with verdicts; ROWS="id id"
	@Tests/setup packages
	@Tests/Bench/bench $(if $(ROWS),--rows "$(ROWS)")

lint: ## checks style
	@Tests/lint

format: ## formats the Swift sources
	@swift format --in-place --parallel --recursive Package.swift Sources Tests

docs: ## documentation into .build/docs
	@Tests/setup packages
	@Tests/Documentation/check

clean: ## removes what was built
	rm -rf .build .build-*

help: ## lists the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20
