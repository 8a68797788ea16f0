import CapturedTrees
import IOMMU
import Testing

@Suite struct PreflightTests {
  private func preflight(
    _ fixture: Fixture, _ device: String?, _ behaviour: (inout TreeKernel.Behaviour) -> Void = { _ in },
    tree change: (inout CapturedTree) -> Void = { _ in }
  ) throws -> Preflight {
    var tree = try fixture.tree
    change(&tree)
    return try Host(kernel: TreeKernel(tree, behaviour)).preflight(for: device.map(address))
  }

  @Test func idsAreTheContract() {
    #expect(
      Preflight.ID.allCases.map(\.rawValue) == [
        "iommu-enabled", "interrupt-remapping", "group-viable", "driver", "permission", "memlock", "iommufd",
        "cdev",
        "type1-entries", "reserved-regions", "modules",
      ])
    #expect(
      Preflight.Verdict.allCases.map(\.rawValue) == ["ok", "warn", "fail", "unknown", "not-applicable"])
  }

  @Test func allIsWell() throws {
    let preflight = try preflight(.laptop, "05:00.0") { $0.capabilities = [14] }
    #expect(preflight.verdict == .ok)
    #expect(preflight.checks.allSatisfy { $0.verdict == .ok && $0.remedy == nil && $0.culprit == nil })
    #expect(preflight.checks.allSatisfy { !$0.evidence.isEmpty && !$0.meaning.isEmpty })
    #expect(preflight.checks.map(\.id) == Preflight.ID.allCases)
  }

  /// What every preflight of every fixture holds to.
  @Test(arguments: Fixture.allCases)
  func everyCheckIsComplete(fixture: Fixture) throws {
    let host = try fixture.host()
    for device in [nil] + (try host.devices(named: false)).map({ Optional($0.address) }) {
      let preflight = try host.preflight(for: device)
      #expect(preflight.device == device && preflight.checks.count == Preflight.ID.allCases.count)
      for check in preflight.checks {
        #expect(check.meaning.hasSuffix(".") && check.remedy?.hasSuffix(".") != false, "\(check)")
        if check.verdict == .fail || check.verdict == .warn { #expect(check.remedy != nil, "\(check)") }
        if check.verdict == .ok || check.verdict == .notApplicable {
          #expect(check.remedy == nil, "\(check)")
        }
        #expect(check.evidence.allSatisfy { !$0.path.isEmpty && !$0.value.contains("\n") })
        if check.remedy?.contains("allow_unsafe_interrupts") == true, check.verdict == .fail {
          #expect(check.remedy!.contains("risk") && check.remedy!.contains("corrupt the host"))
        }
      }
    }
  }

  @Test func culpritIsNamed() throws {
    let check = try preflight(.laptop, "04:00.0")[.groupViable]
    #expect((check.verdict, check.culprit) == (.fail, "0000:04:01.0 (snd_ens1371)"))
    #expect(check.meaning.contains("snd_ens1371") && check.meaning.contains("0000:03:00.0"))
    #expect(check.remedy?.contains("iommuctl bind 0000:04:00.0") == true)
    #expect(
      check.evidence.contains(.init(path: "/sys/bus/pci/devices/0000:04:01.0/driver", value: "snd_ens1371")))
    let machine = try preflight(.laptop, nil)[.groupViable]
    #expect((machine.verdict, machine.culprit) == (.fail, "0000:04:01.0 (snd_ens1371)"))
  }

  @Test func driver() throws {
    #expect(try preflight(.laptop, "02:00.0")[.driver].verdict == .fail)
    #expect(
      try preflight(.laptop, "02:00.0")[.driver].remedy
        == "Bind it, with its group, to vfio-pci: `sudo iommuctl bind 0000:02:00.0`; nvme then loses it.")
    #expect(try preflight(.laptop, "00:1c.0")[.driver].meaning.contains("bridge") == true)
    #expect(try preflight(.laptop, "00:14.2")[.driver].meaning.contains("no driver") == true)
    #expect(try preflight(.server, "0002:01:00.1")[.driver].verdict == .ok)
    #expect(try preflight(.laptop, nil)[.driver].verdict == .notApplicable)
  }

  /// Binding is refused without an IOMMU: to say so would send the user from one check to the next.
  @Test(arguments: [(Fixture.plainVM, "00:03.0"), (.noIOMMU, "00:05.0")])
  func bindingIsNoRemedyWithoutIOMMU(fixture: Fixture, device: String) throws {
    let check = try preflight(fixture, device) { _ in
    } tree: { tree in
      let drivers = tree.paths.filter { $0.hasSuffix("/0000:\(device)/driver") }
      for path in drivers { tree.entries[path] = nil }
    }[.driver]
    #expect(check.verdict == .fail)
    #expect(check.remedy?.contains("iommuctl bind") == false && check.remedy?.contains("iommu-enabled") == true)
  }

  /// A kernel that is built to test its own iommufd has a mock in the list of units.
  @Test func theKernelsMockIsNoUnit() throws {
    let mock = "iommufd_selftest_iommu.0"
    func add(_ tree: inout CapturedTree) { tree.entries["/sys/class/iommu/\(mock)"] = .directory }
    let plain = try preflight(.laptop, nil)[.iommuEnabled]
    #expect(try preflight(.laptop, nil, tree: add)[.iommuEnabled] == plain)
    var tree = try Fixture.laptop.tree
    add(&tree)
    #expect(try Host(kernel: TreeKernel(tree)).units() == Fixture.laptop.host().units())
    let alone = try preflight(.plainVM, nil, tree: add)[.iommuEnabled]
    #expect(alone.verdict == .fail && alone.meaning == "The kernel knows of no IOMMU.")
  }

  @Test func groupsAreCountedInWords() throws {
    let one = try preflight(.type1Only, nil)[.groupViable]
    #expect(one.meaning == "The group of which VFIO has a device has no device that belongs to the host.")
  }

  @Test func withoutIOMMU() throws {
    let plain = try preflight(.plainVM, "00:03.0")[.iommuEnabled]
    #expect(plain.verdict == .fail && plain.remedy?.contains("-device intel-iommu") == true)
    let described = try preflight(.plainVM, nil) { _ in
    } tree: {
      $0["/sys/firmware/acpi/tables/DMAR"] = "x"
    }
    #expect(described[.iommuEnabled].remedy == "Boot with `intel_iommu=on` on the kernel's command line.")
    let off = try preflight(.plainVM, nil) { _ in
    } tree: {
      $0["/proc/cmdline"] = "ro amd_iommu=off\n"
    }
    #expect(off[.iommuEnabled].remedy == "Boot without `amd_iommu=off`.")
    #expect(off[.iommuEnabled].evidence.contains(.init(path: "/proc/cmdline", value: "amd_iommu=off")))
    let mode = try preflight(.noIOMMU, "00:05.0")[.iommuEnabled]
    #expect(mode.verdict == .fail && mode.meaning.contains("no-IOMMU"))
  }

  @Test func interrupts() throws {
    #expect(try preflight(.server, nil)[.interruptRemapping].verdict == .ok)
    #expect(try preflight(.plainVM, nil)[.interruptRemapping].verdict == .notApplicable)
    let off = try preflight(.type1Only, "00:01.0")[.interruptRemapping]
    #expect(off.verdict == .fail && off.remedy?.hasPrefix("Boot without `intremap=off`.") == true)
    let unsafe = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    let allowed = try preflight(.type1Only, nil) { _ in
    } tree: {
      $0[unsafe] = "Y\n"
    }
    #expect(allowed[.interruptRemapping].verdict == .warn)
    #expect(allowed[.interruptRemapping].meaning.contains("any interrupt to any CPU"))
    let unreadable = try preflight(.laptop, nil) { _ in
    } tree: {
      $0.entries["/proc/interrupts"] = .failure(13)
    }
    #expect(unreadable[.interruptRemapping].verdict == .unknown)
    let hardware = try preflight(.laptop, nil) { _ in
    } tree: { tree in
      tree.entries["/proc/interrupts"] = nil
      tree["/sys/devices/virtual/iommu/dmar0/intel-iommu/ecap"] = "f050d2\n"
    }
    #expect(hardware[.interruptRemapping].verdict == .fail)
  }

  @Test func permission() throws {
    let denied = try preflight(.laptop, "05:00.0") { $0.denied = ["/dev/iommu", "/dev/vfio/11"] }
    #expect(denied[.permission].verdict == .fail && denied[.permission].remedy?.contains("udev") == true)
    #expect(denied[.permission].evidence.contains { $0.path == "/dev/iommu" && $0.value.contains("EACCES") })
    // Either way to the device is enough.
    #expect(try preflight(.laptop, "05:00.0") { $0.denied = ["/dev/iommu"] }[.permission].verdict == .ok)
    #expect(try preflight(.laptop, "05:00.0") { $0.denied = ["/dev/vfio/11"] }[.permission].verdict == .ok)
    #expect(try preflight(.laptop, "02:00.0")[.permission].verdict == .notApplicable)
    #expect(try preflight(.plainVM, nil)[.permission].verdict == .fail)
    let captured = Host(kernel: TreeKernel(try Fixture.laptop.tree), isCaptured: true)
    #expect(try captured.preflight(for: address("05:00.0"))[.permission].verdict == .notApplicable)
    #expect(try captured.preflight(for: address("05:00.0"))[.memlock].verdict == .notApplicable)
  }

  @Test(arguments: [
    (UInt64(8) << 20, Preflight.Verdict.warn, "8 MiB"), (1 << 12, .fail, "4 KiB"), (1 << 30, .ok, "1 GiB"),
    (.max, .ok, "Nothing limits"), (12_345_678, .warn, "12345678 bytes"),
  ])
  func memoryLock(limit: UInt64, verdict: Preflight.Verdict, words: String) throws {
    let check = try preflight(.laptop, nil) { $0.lockLimit = limit }[.memlock]
    #expect(check.verdict == verdict && check.meaning.contains(words))
    #expect(check.evidence.first?.path == "RLIMIT_MEMLOCK")
    if verdict != .ok {
      #expect(
        check.meaning.contains("all processes of the user") && check.meaning.contains("this process has"))
      #expect(check.remedy?.contains("`sudo prlimit --pid $$ --memlock=unlimited`") == true)
    }
    #expect(
      try preflight(.laptop, nil) { ($0.lockLimit, $0.capabilities) = (limit, [14]) }[.memlock].verdict == .ok
    )
  }

  /// The remedy names files of the package, and the lines that stand in them.
  @Test func memoryLockFilesAreThePackages() throws {
    let remedy = try #require(try preflight(.laptop, nil)[.memlock].remedy)
    let folder = #filePath.split(separator: "/").dropLast(4).map { "/\($0)" }.joined() + "/udev"
    for (file, place) in [
      ("limits.d/60-vfio-iommu.conf", "/etc/security/limits.d"),
      ("systemd/user@.service.d/vfio-memlock.conf", "systemctl --user"),
      ("systemd/vfio-memlock.conf", "/etc/systemd/system/NAME.service.d"),
    ] {
      let text = String(decoding: try DiskKernel(root: folder).readFile("/\(file)"), as: UTF8.self)
      let line = try #require(text.split(separator: "\n").last)
      #expect(remedy.contains(file) && remedy.contains(place) && remedy.contains("`\(line)`"), "\(file)")
    }
  }

  @Test func kernelWithoutNewInterfaces() throws {
    let preflight = try preflight(.type1Only, "00:01.0")
    #expect(preflight[.iommufd].verdict == .warn)
    #expect(
      preflight[.iommufd].meaning == "The kernel was built without iommufd. type1 is used in its place.")
    #expect(preflight[.cdev].verdict == .warn && preflight[.cdev].meaning.contains("group's node"))
    #expect(preflight[.type1Entries].verdict == .warn && preflight[.type1Entries].meaning.contains("1000"))
    #expect(preflight[.modules].verdict == .ok)
    let module = "/lib/modules/6.1.0-18-amd64/kernel/drivers/iommu/iommufd/iommufd.ko.xz"
    let loadable = try self.preflight(.type1Only, nil) { _ in
    } tree: {
      $0[module] = ""
    }
    #expect(loadable[.iommufd].remedy == "`sudo modprobe iommufd`.")
    let builtIn = try self.preflight(.type1Only, nil) { _ in
    } tree: { tree in
      tree["/lib/modules/6.1.0-18-amd64/modules.builtin"] = "kernel/drivers/iommu/iommufd/iommufd.ko\n"
    }
    #expect(builtIn[.iommufd].meaning.contains("/dev/iommu is not there"))
    let neither = try self.preflight(.type1Only, nil) { _ in
    } tree: {
      $0["/dev/vfio/vfio"] = nil
    }
    #expect(neither[.iommufd].verdict == .fail)
  }

  @Test func modules() throws {
    let plain = try preflight(.plainVM, nil)[.modules]
    #expect(plain.verdict == .fail && plain.remedy?.contains("modprobe vfio-pci") == true)
    let without = try preflight(.plainVM, nil) { _ in
    } tree: { tree in
      tree["/proc/sys/kernel/osrelease"] = "7.2.0\n"
      tree.entries["/lib/modules/7.2.0"] = .directory
    }
    #expect(without[.modules].remedy == "Boot a kernel with CONFIG_VFIO_PCI.")
    // A release that would lead elsewhere is not followed.
    let strange = try preflight(.plainVM, nil) { _ in
    } tree: {
      $0["/proc/sys/kernel/osrelease"] = "../../etc\n"
    }
    #expect(strange[.modules].verdict == .fail)
  }

  @Test func reservedRegions() throws {
    let direct = try preflight(.server, "0000:00:08.0")[.reservedRegions]
    #expect(direct.verdict == .fail && direct.meaning.contains("EINVAL"))
    let relaxable = try preflight(.laptop, "00:02.0")[.reservedRegions]
    #expect(relaxable.verdict == .ok && relaxable.evidence.count == 2)
    let path = "/sys/kernel/iommu_groups/11/reserved_regions"
    let unreadable = try preflight(.laptop, "05:00.0") { _ in
    } tree: {
      $0.entries[path] = .failure(13)
    }
    #expect(unreadable[.reservedRegions].verdict == .unknown)
    #expect(unreadable[.reservedRegions].meaning.contains("kernel's own list"))
    #expect(unreadable[.reservedRegions].evidence.map(\.path) == [path])
  }

  @Test func nodeMissingInContainer() throws {
    let check = try preflight(.laptop, "05:00.0") { _ in
    } tree: {
      $0["/dev/vfio/devices/vfio1"] = nil
    }[.cdev]
    #expect(check.verdict == .fail && check.remedy?.contains("/dev/vfio/devices/vfio1") == true)
  }

  @Test func mutatedTrees() throws {
    for fixture in [Fixture.laptop, .server, .type1Only] {
      let original = try fixture.tree
      for seed in 0..<40 as Range<UInt64> {
        var mutator = TreeMutator(seed: seed &+ 1000)
        let host = Host(kernel: TreeKernel(mutator.mutated(original)))
        do {
          _ = try host.preflight(for: nil)
          for device in try host.devices(named: false).prefix(4) {
            _ = try host.preflight(for: device.address)
          }
        } catch let error as any Error { #expect(error is DMAError, "seed \(seed)") }
      }
    }
  }
}
