import AddressSpace
import CapturedTrees
import IOMMU
import Testing

@Suite struct PCIDetailsTests {
  @Test func bars() throws {
    let details = try Fixture.laptop.host().details(of: address("00:02.0"))
    #expect(details.resources.map(\.index) == [0, 2])
    #expect(details.resources[0].start == 0xb000_0000 && details.resources[0].byteCount == 0x100_0000)
    #expect(
      details.resources[0].isMemory && details.resources[0].is64Bit && !details.resources[0].isPrefetchable)
    #expect(details.resources[1].isPrefetchable && details.windows.isEmpty)
    #expect((details.isBootDisplay, details.isEnabled, details.powerState) == (true, true, "D0"))
    #expect((details.resetMethods, details.revision) == (["flr", "pm"], 1))
    #expect(details.unread.isEmpty)
  }

  @Test func bridges() throws {
    let details = try Fixture.laptop.host().details(of: address("00:1c.0"))
    #expect(details.resources.isEmpty)
    #expect(details.windows.map(\.start) == [0xb110_0000])
    #expect(details.isPCIExpress == true && details.configByteCount == 4096)
    #expect(details.accessControl?.isolates == true)
    #expect(details.resetMethods == [])
  }

  @Test func virtualFunctions() throws {
    let host = try Fixture.server.host()
    let physical = try host.details(of: address("0002:01:00.0"))
    #expect(physical.virtualFunctions == ["0002:01:00.1", "0002:01:00.2"].map(address))
    #expect((physical.virtualFunctionLimit, physical.physicalFunction) == (8, nil))
    let virtual = try host.details(of: address("0002:01:00.1"))
    #expect(virtual.physicalFunction == address("0002:01:00.0"))
    #expect((virtual.virtualFunctions, virtual.virtualFunctionLimit) == ([], nil))
  }

  @Test func topology() throws {
    let host = try Fixture.laptop.host()
    let isolated = try host.topology(of: address("05:00.0"))
    #expect((isolated.redirectsToIOMMU, isolated.conventionalBridge) == (true, nil))
    #expect(isolated.upstream == [address("00:1c.5")])
    let conventional = try host.topology(of: address("04:00.0"))
    #expect(conventional.conventionalBridge == address("03:00.0"))
    #expect(conventional.redirectsToIOMMU == false)
  }

  @Test func topologyWithoutPrivilege() throws {
    let host = try Fixture.laptop.host { tree in
      for (path, entry) in tree.entries where path.hasSuffix("/config") {
        guard case .file(let bytes) = entry else { continue }
        tree.entries[path] = .file(Array(bytes.prefix(64)))
      }
    }
    let conventional = try host.topology(of: address("04:00.0"))
    #expect(conventional.conventionalBridge == address("03:00.0"))
    #expect(conventional.redirectsToIOMMU == nil)
    let express = try host.topology(of: address("05:00.0"))
    #expect((express.redirectsToIOMMU, express.conventionalBridge) == (nil, nil))
    #expect(try host.details(of: address("05:00.0")).isPCIExpress == true)
    #expect(try host.details(of: address("04:00.0")).isPCIExpress == false)
  }

  @Test func peerWindows() throws {
    let host = try Fixture.laptop.host()
    let alone = try host.peerWindows(of: address("05:00.0"))
    #expect(!alone.isNeeded && alone.ranges.isEmpty)
    let shared = try host.peerWindows(of: address("04:00.0"))
    #expect(shared.isNeeded && shared.unread.isEmpty)
    // The bridges' windows hold their devices' BARs; neighbours are merged, I/O ports left out.
    let text = shared.ranges.map {
      String($0.start.rawValue, radix: 16) + "-" + String($0.last.rawValue, radix: 16)
    }
    #expect(text.first == "a0000000-b11fffff" && text.last == "b1239000-b12390ff")
    #expect(zip(shared.ranges, shared.ranges.dropFirst()).allSatisfy { $0.last < $1.start })
  }

  @Test func peerWindowsStayBelowTheRootBus() throws {
    let host = try Fixture.server.host { tree in
      // Redirection switched off at the root port of domain 2.
      let path = tree.path(of: "0002:00:00.0") + "/config"
      guard case .file(var bytes)? = tree.entries[path] else { return }
      bytes[0x106] = 0
      tree.entries[path] = .file(bytes)
    }
    let windows = try host.peerWindows(of: address("0002:01:00.1"))
    #expect(windows.isNeeded)
    #expect(windows.ranges.allSatisfy { $0.start.rawValue >= 0x8_0000_0000 } && !windows.ranges.isEmpty)
    #expect(try !host.peerWindows(of: address("0000:01:00.0")).isNeeded)
  }

  @Test func rootBus() throws {
    // Conventional, alone on the root bus; and one function of several there.
    let alone = try Fixture.type1Only.host()
    #expect(try alone.topology(of: address("00:01.0")).redirectsToIOMMU == true)
    #expect(try !alone.peerWindows(of: address("00:01.0")).isNeeded)
    let laptop = try Fixture.laptop.host()
    #expect(try laptop.topology(of: address("00:14.0")).redirectsToIOMMU == false)
    #expect(try laptop.peerWindows(of: address("00:14.0")).isNeeded)
  }

  @Test func topOfTheAddressSpace() throws {
    let host = try Fixture.laptop.host { tree in
      let path = tree.path(of: "0000:04:00.0")
      tree["\(path)/resource"] =
        "0xfffffffffffff000 0xffffffffffffffff 0x200\n0x0000000000000000 0xffffffffffffffff 0x200\n"
    }
    #expect(try host.peerWindows(of: address("04:00.0")).ranges == [IOVARange.full])
    #expect(try host.details(of: address("04:00.0")).resources[1].byteCount == 0)
  }
}
