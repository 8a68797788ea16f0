// A linked buffer is the device's.
import IOMMU

func bufferAfterLink(_ device: Device) throws(DMAError) {
  var reservation = try device.dma.reserve(byteCount: 4096)
  var buffer = try device.dma.buffer(byteCount: 64)
  try reservation.link(buffer, at: 0, .toDevice)
  buffer.store(UInt8(1))
  _ = try reservation.destroy()
}
// expected-error: 'buffer' used after consume
