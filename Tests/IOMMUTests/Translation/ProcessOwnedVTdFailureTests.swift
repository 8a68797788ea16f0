import AddressSpace
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// The same when calls fail, and when everything happens at once.
@Suite struct ProcessOwnedVTdFailureTests {
  private typealias Tests = ProcessOwnedVTdTests

  /// A call that fails leaves it open what was done: everything is invalidated then.
  @Test func aFailedCall() throws {
    let machine = Tests.host(), kernel = FaultingKernel(machine.kernel)
    let device = try Tests.open(machine, kernel)
    let mapping = try device.dma.map(try Tests.buffer(device), .bidirectional), address = mapping.address
    #expect(try Tests.reaches(device, address, machine))
    let before = machine.vtdCounters().process.wholeTag
    kernel.fail(1, of: "hwptInvalidate", with: .inputOutput)
    _ = try mapping.unmap()
    #expect(try !Tests.reaches(device, address, machine))
    #expect(machine.vtdCounters().process.wholeTag == before + 1 && device.dma.statistics.leakedBytes == 0)
    let stuck = try device.dma.map(try Tests.buffer(device), .bidirectional)
    kernel.failFrom(1, of: "hwptInvalidate", with: .inputOutput)
    do throws(DMAError) {
      _ = try stuck.unmap()
      Issue.record("unmapped")
    } catch { #expect(error.errno == .inputOutput) }
    #expect(device.dma.statistics.leakedBytes == 4096)
    kernel.passAll()
    device.close()
    #expect(machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0)
  }

  /// The n-th call of opening fails, for every n: an error, and nothing is left. Then of closing: nothing stays pinned.
  @Test func everyCall() throws {
    for n in 1...200 {
      let machine = Tests.host(), kernel = FaultingKernel(machine.kernel)
      kernel.fail(n, with: .inputOutput)
      var hasFailed = true
      do {
        if let device = try? Tests.open(machine, kernel) {
          hasFailed = kernel.hasFailed
          device.close()
        }
      }
      #expect(machine.isClean, "call \(n), \(kernel.failedName ?? "none")")
      if !hasFailed { return }
    }
    Issue.record("opening takes more calls than that")
  }

  @Test func everyCallOfClosing() throws {
    for n in 1...50 {
      let machine = Tests.host(), kernel = FaultingKernel(machine.kernel)
      do {
        let device = try Tests.open(machine, kernel)
        _ = try device.dma.map(try Tests.buffer(device), .bidirectional).unmap()
        kernel.resetCounts()
        kernel.fail(n, with: .inputOutput)
        device.close()
      }
      let hasFailed = kernel.hasFailed
      kernel.passAll()
      // What could not be destroyed goes with the descriptors.
      #expect(
        machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0, "\(kernel.failedName ?? "")")
      if !hasFailed { return }
    }
    Issue.record("closing takes more calls than that")
  }

  /// A device that cannot join is told why; the others go on.
  @Test func joiningFails() throws {
    let machine = Tests.host(), kernel = FaultingKernel(machine.kernel)
    do {
      let first = try Tests.open(machine, kernel)
      for call in ["vfioAttach", "hardwareInfo"] {
        kernel.resetCounts()
        kernel.fail(1, of: call, with: .busy)
        do throws(DMAError) {
          _ = try Device(Tests.second, on: Host(kernel: kernel), sharing: first.dma)
          Issue.record("joined")
        } catch { #expect(error.errno == .busy && error.device == Tests.second) }
      }
      // A table that the kernel will not have the device in is not the last word.
      kernel.resetCounts()
      kernel.fail(1, of: "vfioAttach", with: .invalidArgument)
      let second = try Device(Tests.second, on: Host(kernel: kernel), sharing: first.dma)
      let mapping = try first.dma.map(try Tests.buffer(first), .bidirectional), address = mapping.address
      #expect(try Tests.reaches(first, address, machine) && Tests.reaches(second, address, machine))
      _ = try mapping.unmap()
      #expect(try !Tests.reaches(first, address, machine) && !Tests.reaches(second, address, machine))
      second.close()
      first.close()
    }
    #expect(machine.isClean)
  }

  /// Threads that map, unmap, flush and register at once, while another device comes and goes.
  @Test func allAtOnce() throws {
    let machine = Tests.host({ _ in }) { $0[1].iommuUnit = 1 }
    do {
      let first = try Tests.open(machine), dma = first.dma
      let next = Atomic<Int>(0), failures = Mutex<[String]>([])
      WorkerThreads.run(4) {
        let number = next.wrappingAdd(1, ordering: .relaxed).oldValue
        do {
          for round in 0..<40 {
            switch number {
            case 0:
              let device = try Device(Tests.second, on: machine.host, sharing: dma)
              _ = try dma.map(try dma.buffer(byteCount: 4096), .toDevice).unmap()
              device.close()
            case 1:
              try dma.switchProtection(to: round % 2 == 0 ? .lazy(FlushQueueOptions(.perCPU)) : .strict)
              try dma.drain()
            default:
              for pages in [1, 3, 600] {
                _ = try dma.map(try dma.buffer(byteCount: pages * 4096), .bidirectional).unmap()
              }
            }
          }
        } catch { failures.withLock { $0.append("\(number): \(error)") } }
      }
      #expect(failures.withLock { $0 } == [])
      #expect(machine.vtdCounters().illegalDescriptors == 0)
      first.close()
    }
    #expect(machine.isClean)
  }
}
