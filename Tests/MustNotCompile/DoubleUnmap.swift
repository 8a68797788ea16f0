// The second unmap would free an address that may be somebody else's by then.
import IOMMU

func doubleUnmap(_ device: Device) throws(DMAError) {
  let buffer = try device.dma.buffer(byteCount: 64)
  let mapping = try device.dma.map(buffer, .toDevice)
  _ = try mapping.unmap()
  _ = try mapping.unmap()
}
// expected-error: 'mapping' consumed more than once
