import IOMMU
import Testing

@Suite struct PCIAddressTests {
  @Test(arguments: [
    ("0000:03:00.0", "0000:03:00.0"), ("03:00.0", "0000:03:00.0"), ("3:0.0", "0000:03:00.0"),
    ("0:3:0.0", "0000:03:00.0"), ("00:1f.7", "0000:00:1f.7"), ("FF:1F.7", "0000:ff:1f.7"),
    ("abCD:eF:0a.1", "abcd:ef:0a.1"), ("10000:e1:00.0", "10000:e1:00.0"),
    ("ffffffff:00:00.0", "ffffffff:00:00.0"), ("00000000:03:00.0", "0000:03:00.0"),
    ("pci:0000:03:00.0", "0000:03:00.0"), ("pci-0000:03:00.0", "0000:03:00.0"),
    ("pci:03:00.0", "0000:03:00.0"),
    ("0000:03:00.0/", "0000:03:00.0"), ("/sys/bus/pci/devices/0000:03:00.0", "0000:03:00.0"),
    ("/sys/bus/pci/devices/0000:03:00.0/", "0000:03:00.0"),
    ("../../../devices/pci0000:00/0000:00:1c.0/0000:03:00.0", "0000:03:00.0"),
  ])
  func acceptsUsualForms(text: String, canonical: String) throws {
    let address = try #require(PCIAddress(text))
    #expect(address.description == canonical)
    #expect(PCIAddress(address.description) == address)
  }

  @Test(arguments: [
    "", " ", ":", ".", "0", "03", "03:00", "03:00.", "03:00.8", "03:00.00", "03:20.0", "003:00.0", "03:000.0",
    "100:00.0", "0000:100:00.0", "0000:03:00:0", "0000:03:00.0 ", " 0000:03:00.0", "0000:03:00.0\n",
    "0000:03:00.0.0",
    "000000000:03:00.0", "fffffffff:00:00.0", "0000::00.0", ":03:00.0", "0000:03:.0", "0000.03.00.0",
    "0x0:03:00.0",
    "g000:03:00.0", "0000:03:00.g", "-1:03:00.0", "+3:00.0", "PCI:03:00.0", "pci/03:00.0", "pci:",
    "pci:pci:03:00.0",
    "1:0000:03:00.0", "/sys/bus/pci/devices", "/sys/03:00.0", "/0000:03:00.0/config", "0000:03:00.0//", "/",
    "//",
    "８:0.0", "03\u{0}:00.0", "03:00.0/", "nvme0",
  ])
  func rejectsAllElse(text: String) {
    #expect(PCIAddress(text) == nil)
  }

  @Test func ordersByDomainThenBus() {
    let sorted = [
      "0000:00:01.0", "0000:00:01.1", "0000:00:02.0", "0000:01:00.0", "0001:00:00.0", "10000:00:00.0",
    ]
    #expect(sorted.compactMap { PCIAddress($0) }.shuffled().sorted().map(\.description) == sorted)
  }

  @Test func partsAreChecked() {
    #expect(PCIAddress(bus: 0, device: 32, function: 0) == nil)
    #expect(PCIAddress(bus: 0, device: 0, function: 8) == nil)
    #expect(PCIAddress(bus: 255, device: 31, function: 7)?.requesterID == 0xffff)
  }

  @Test func everyAddressRoundTrips() {
    var generator = SystemRandomNumberGenerator()
    for _ in 0..<10_000 {
      let address = PCIAddress(
        domain: .random(in: 0 ... .max, using: &generator), bus: .random(in: 0 ... .max),
        device: .random(in: 0...31),
        function: .random(in: 0...7))!
      #expect(PCIAddress(address.description) == address)
    }
  }
}
