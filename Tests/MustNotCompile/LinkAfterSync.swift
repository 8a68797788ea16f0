// What is linked after the sync would not be complete.
import IOMMU

func linkAfterSync(_ device: Device) throws(DMAError) {
  var reservation = try device.dma.reserve(byteCount: 4096)
  let buffer = try device.dma.buffer(byteCount: 64)
  let linked = try reservation.sync()
  try reservation.link(buffer, at: 0, .toDevice)
  _ = try linked.destroy()
}
// expected-error: 'reservation' used after consume
