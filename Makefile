# The commands of a contributor; each sets up what it needs. The README tells what they do.
.PHONY: demo test hardware-test bench lint format docs clean

demo:
	@Tests/setup packages
	@swift run -c release iommuctl --simulated demo

test:
	@Tests/run-tests

hardware-test:
	@Tests/VirtualHardware/hardware-test $(if $(MACHINES),--machines "$(MACHINES)")

bench:
	@Tests/Bench/bench $(if $(ROWS),--rows "$(ROWS)")

lint:
	@Tests/lint

format:
	@swift format --in-place --parallel --recursive Package.swift Sources Tests

docs:
	@Tests/Documentation/check

clean:
	rm -rf .build .build-*
