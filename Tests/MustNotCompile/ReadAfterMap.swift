// Reading is no better than writing: what the device writes meanwhile may be half there.
import IOMMU

func readAfterMap(_ device: Device) throws(DMAError) -> UInt32 {
  let buffer = try device.dma.buffer(byteCount: 64)
  let mapping = try device.dma.map(buffer, .fromDevice)
  let value = buffer.load(as: UInt32.self)
  _ = try mapping.unmap()
  return value
}
// expected-error: 'buffer' used after consume
