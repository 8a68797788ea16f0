// One buffer at two addresses: the first unmap would give back what the second still shows to the device.
import IOMMU

func doubleMap(_ device: Device) throws(DMAError) {
  let buffer = try device.dma.buffer(byteCount: 64)
  let first = try device.dma.map(buffer, .toDevice)
  let second = try device.dma.map(buffer, .toDevice)
  _ = try first.unmap()
  _ = try second.unmap()
}
// expected-error: 'buffer' consumed more than once
