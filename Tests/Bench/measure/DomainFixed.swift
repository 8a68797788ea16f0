import IOMMU
import IOMMUSimulation
import RawIoctls

/// Bytes on the heap for an open device with a domain of its own that maps nothing.
///
/// On the simulated kernel, whose own records of device and address space are in it: the domain has less.
func domainFixed() throws -> Measurement {
  let count = 16
  var machine = SimulatedMachine.vtd
  machine.devices = (0...count).map { SimulatedDevice("0000:01:\(hex($0)).0", EduModel(addressBits: 32)) }
  let host = Host.simulated(machine)
  // The first pays for what a process has once.
  var devices = [try Device("0000:01:00.0", on: host)]
  let before = heapBytes()
  for index in 1...count { devices.append(try Device("0000:01:\(hex(index)).0", on: host)) }
  let after = heapBytes()
  let live = devices.reduce(0) { $0 + $1.dma.statistics.liveMappings }
  if live != 0 { throw Failure(description: "\(live) mappings are live") }
  for device in devices { device.close() }
  return Measurement(
    value: Double(after - before) / Double(count), anchor: "open devices", anchorValue: Double(count), repeats: 1)
}

private func hex(_ number: Int) -> String { (number < 16 ? "0" : "") + String(number, radix: 16) }

/// What malloc has given out.
private func heapBytes() -> Int { raw_heap_bytes() }
