// The CPU touches memory that the device owns.
import IOMMU

func useAfterMap(_ device: Device) throws(DMAError) {
  var buffer = try device.dma.buffer(byteCount: 64)
  let mapping = try device.dma.map(buffer, .toDevice)
  buffer.store(UInt32(1))
  buffer = try mapping.unmap()
}
// expected-error: 'buffer' used after consume
