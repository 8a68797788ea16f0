package import AddressSpace
package import IOMMUSimulation
import NVMeDriver

/// A device that can be told to write a few bytes to an address, thousands of times.
package protocol DeviceWriter {
  /// Has the device write, and waits until it has; whether the write went through, nil where the device does not tell.
  func write(to address: IOVA) throws -> Bool?
}

/// Any device of a simulated machine.
package struct SimulatedWriter: DeviceWriter {
  private let machine: SimulatedHost
  private let device: String

  package init(_ machine: SimulatedHost, _ device: String) { (self.machine, self.device) = (machine, device) }

  package func write(to address: IOVA) -> Bool? { machine.storm(1, from: device, at: address.rawValue) == 0 }
}

/// An NVMe controller, whose commands take QEMU no time of the guest's as an edu device's do. What it writes is its health log.
struct NVMeWriter: DeviceWriter {
  let controller: NVMeController

  func write(to address: IOVA) throws -> Bool? {
    do throws(NVMeError) { try controller.readHealth(into: address) } catch {
      // Hardware ends the command with an error; QEMU's controller takes no notice.
      guard case .status = error else { throw error }
      return false
    }
    return nil
  }
}
