import IOMMU
import IOMMUSimulation
import Testing

/// Several threads on one kernel.
@Suite struct StressTests {
  /// Runs a body on threads of their own and waits for all.
  func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) async {
    await withTaskGroup(of: Void.self) { group in
      for index in 0..<count { group.addTask { body(index) } }
    }
  }

  @Test func mapsAndUnmaps() async throws {
    let rig = try IOMMUFDRig()
    let errors = SynchronizedCount()
    await onThreads(2) { index in
      let base = UInt64(index + 1) << 32
      for round in 0..<2000 as Range<UInt64> {
        let iova = base + (round % 64) * 0x2000
        do {
          try rig.map(at: iova, offset: (round % 16) * 4096)
          guard try rig.unmap(iova, 0x2000) == 4096 else { throw Errno.inputOutput }
        } catch {
          errors.add()
        }
      }
    }
    #expect(errors.value == 0)
    #expect(rig.machine.counters.invalidations == 4000)
    rig.close()
  }

  @Test func placesAreNeverGivenTwice() async throws {
    let rig = try IOMMUFDRig()
    let errors = SynchronizedCount()
    await onThreads(2) { _ in
      var mine: [UInt64] = []
      for _ in 0..<200 {
        if let iova = try? rig.map(at: 0, flags: 6) { mine.append(iova) } else { errors.add() }
      }
      if Set(mine).count != mine.count { errors.add() }
      for iova in mine where (try? rig.unmap(iova, 4096)) != 4096 { errors.add() }
    }
    #expect(errors.value == 0)
    #expect(rig.machine.kernel.census.areas == 0)
    rig.close()
  }

  @Test func dmaBesideUnmaps() async throws {
    let rig = try IOMMUFDRig()
    await onThreads(2) { index in
      for round in 0..<500 as Range<UInt64> {
        if index == 0 {
          _ = try? rig.map(at: 0x1000)
          _ = try? rig.unmap(0x1000, 4096)
        } else {
          _ = try? rig.edu(0x1000 + round % 4096 / 2, 8, toMemory: round % 2 == 0)
        }
      }
    }
    let counters = rig.machine.counters
    #expect(counters.faults + Int(counters.bytesRead + counters.bytesWritten) / 8 == 500)
    rig.close()
  }

  @Test func waitersAreWoken() async throws {
    let rig = try IOMMUFDRig()
    let event = try rig.kernel.createEvent()
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.msi, start: 0, events: [event])
    let taken = SynchronizedCount()
    await onThreads(2) { index in
      if index == 0 {
        while taken.value < 200 {
          guard (try? rig.kernel.waitReadable([event], timeout: .seconds(20))) == 0 else { return }
          if let count = try? rig.kernel.takeEvent(event) { taken.add(Int(count)) }
        }
      } else {
        for _ in 0..<200 { try? rig.registers.write(0x60, 1, width: 4) }
      }
    }
    #expect(taken.value == 200)
    rig.kernel.close(event)
    rig.close()
  }

  @Test func openAndCloseTogether() async throws {
    let machine = SimulatedHost(devices: ["0000:03:00.0": EduModel(), "0000:04:00.0": EduModel()])
    let errors = SynchronizedCount()
    await onThreads(2) { index in
      for _ in 0..<100 {
        do {
          let kernel = machine.kernel
          let iommufd = try kernel.open("/dev/iommu"),
            device = try kernel.open("/dev/vfio/devices/vfio\(index)")
          defer { for descriptor in [device, iommufd] { kernel.close(descriptor) } }
          _ = try kernel.vfioBind(device, iommufd: iommufd, token: nil)
          _ = try kernel.vfioAttach(device, pageTable: try kernel.ioasAllocate(iommufd))
        } catch {
          errors.add()
        }
      }
    }
    #expect(errors.value == 0)
    #expect(machine.isClean)
  }
}
