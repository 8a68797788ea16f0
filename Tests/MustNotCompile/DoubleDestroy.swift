// The second would free addresses that may be somebody else's by then.
import IOMMU

func doubleDestroy(_ device: Device) throws(DMAError) {
  let reservation = try device.dma.reserve(byteCount: 4096)
  _ = try reservation.destroy()
  _ = try reservation.destroy()
}
// expected-error: 'reservation' consumed more than once
