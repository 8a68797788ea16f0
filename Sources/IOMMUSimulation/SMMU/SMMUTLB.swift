/// The IOTLB of a simulated SMMU: domains are VMIDs and spaces ASIDs.
typealias SMMUTLB = TranslationCache

extension TranslationCache.Tag {
  init(vmid: UInt16, asid: UInt16? = nil) { self.init(domain: vmid, space: asid) }

  var vmid: UInt16 { domain }
  var asid: UInt16? { space }
}
