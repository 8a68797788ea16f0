import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// `SWIFT_IOMMU_DEBUG`, in processes of their own.
@Suite struct DebugEnvironmentTests {
  /// Whether a device that is opened with this value has debug mode.
  private static func isOn(_ value: String) throws -> Bool {
    _ = unsafe setenv("SWIFT_IOMMU_DEBUG", value, 1)
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel()])
    let device = try Device(LazyTests.address, on: machine.host)
    defer { device.close() }
    return device.dma.debugOptions != nil
  }

  @Test func theUsualSpellings() async {
    let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
      for value in ["1", "true", "yes", "on", "True", "YES"] where try !DebugEnvironmentTests.isOn(value) { exit(1) }
      for value in ["", "0", "false", "no", "off", "OFF"] where try DebugEnvironmentTests.isOn(value) { exit(2) }
    }
    let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
    #expect(result != nil && !text.contains("SWIFT_IOMMU_DEBUG"))
  }

  /// Who sets it wants something: it is on, and that is told once.
  @Test func whatMeansNothing() async {
    let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
      for value in ["ture", "2", " "] where try !DebugEnvironmentTests.isOn(value) { exit(1) }
    }
    let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
    #expect(
      text.split(separator: "\n").filter { $0.contains("SWIFT_IOMMU_DEBUG") } == [
        "iommu debug: SWIFT_IOMMU_DEBUG=ture is none of 1, true, yes, on, 0, false, no, off: debug mode is on"
      ])
  }
}
