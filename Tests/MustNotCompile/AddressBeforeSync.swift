// The device must not get an address before what is linked there is complete.
import IOMMU

func addressBeforeSync(_ device: Device) throws(DMAError) -> IOVA {
  var reservation = try device.dma.reserve(byteCount: 4096)
  try reservation.link(try device.dma.buffer(byteCount: 64), at: 0, .toDevice)
  return reservation.address
}
// expected-error: value of type 'Reservation' has no member 'address'
