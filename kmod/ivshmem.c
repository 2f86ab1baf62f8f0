// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The first provider of regions: QEMU's inter-VM shared memory device.
 *
 * BAR0 registers, BAR1 the MSI-X table, BAR2 the memory. With a doorbell the
 * server gave this machine a peer id, which is the index of its chunk: the
 * register IVPosition is the one place that no other machine can write. A
 * plain device has neither; then the parameter `chunk` says, and the inbox is
 * polled.
 */
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/pci.h>

#include "channel.h"

#define REG_POSITION	0x08
#define REG_DOORBELL	0x0c

#define CACHED_TRIAL	16384

static int chunk = -1;
module_param(chunk, int, 0444);
MODULE_PARM_DESC(chunk, "Own chunk, for devices without a doorbell; with one it must agree");

static unsigned int cached_mbps = 100;
module_param(cached_mbps, uint, 0644);
MODULE_PARM_DESC(cached_mbps, "Refuse memory that is read slower, as uncached memory is (MB/s)");

static unsigned int drain_ms = 5000;
module_param(drain_ms, uint, 0644);
MODULE_PARM_DESC(drain_ms, "How long a drain may take (ms)");

struct ivshmem {
	struct pci_dev *pdev;
	void __iomem *regs;
	void *memory;
	int vectors;
	struct tcp_sm_region *region;
};

static void doorbell(struct tcp_sm_region *region, u32 peer)
{
	struct ivshmem *dev = region->provider_data;

	writel(peer << 16, dev->regs + REG_DOORBELL);
}

static void quiesce(struct tcp_sm_region *region)
{
	struct ivshmem *dev = region->provider_data;

	disable_irq(pci_irq_vector(dev->pdev, 0));
	WRITE_ONCE(dev->region, NULL);
	enable_irq(pci_irq_vector(dev->pdev, 0));
}

/* Peers may need a bell though this machine gets none, if it has no vectors for it. */
static void perhaps_doorbell(struct tcp_sm_region *region, u32 peer)
{
	struct ivshmem *dev = region->provider_data;

	if (dev->pdev->msix_cap)
		doorbell(region, peer);
}

static const struct tcp_sm_provider with_doorbell = {
	.name = "ivshmem-doorbell",
	.interrupts = true,
	.doorbell = doorbell,
	.quiesce = quiesce,
};

static void no_quiesce(struct tcp_sm_region *region)
{
}

static const struct tcp_sm_provider plain = {
	.name = "ivshmem-plain",
	.doorbell = perhaps_doorbell,
	.quiesce = no_quiesce,
};

static irqreturn_t interrupt(int irq, void *data)
{
	struct ivshmem *dev = data;
	struct tcp_sm_region *region = READ_ONCE(dev->region);

	if (region)
		tcp_sm_region_event(region);
	return IRQ_HANDLED;
}

static ssize_t region_show(struct device *device, struct device_attribute *attr, char *buf)
{
	struct ivshmem *dev = dev_get_drvdata(device);
	struct tcp_sm_superblock *sb = dev->memory;

	return sysfs_emit(buf, "%.63s\n", sb->name);
}
static DEVICE_ATTR_RO(region);

static ssize_t provider_show(struct device *device, struct device_attribute *attr, char *buf)
{
	struct ivshmem *dev = dev_get_drvdata(device);

	return sysfs_emit(buf, "%s\n", dev->region->provider->name);
}
static DEVICE_ATTR_RO(provider);

/* One "name value" a line. */
static ssize_t status_show(struct device *device, struct device_attribute *attr, char *buf)
{
	struct ivshmem *dev = dev_get_drvdata(device);
	struct tcp_sm_region *region = dev->region;

	return sysfs_emit(buf,
			  "chunk %u\nepoch %u\nslots %u\nring_size %u\nready %d\nclosing %d\n"
			  "connections %d\nslots_busy %u\nslots_lingering %u\n"
			  "opened %llu\naborted %llu\nprograms %d\n",
			  region->own.index, region->own.epoch, region->own.slots,
			  region->own.ring_size, tcp_sm_region_ready(region), region->closing,
			  atomic_read(&region->nconns), region->slots_busy, region->lingering,
			  region->opened, region->aborted, tcp_sm_ops_attached());
}
static DEVICE_ATTR_RO(status);

/* Write 1: all connections back to TCP, new ones refused. 0: accept again. */
static ssize_t drain_store(struct device *device, struct device_attribute *attr, const char *buf,
			   size_t count)
{
	struct ivshmem *dev = dev_get_drvdata(device);
	bool drain;
	int err = kstrtobool(buf, &drain);

	if (err)
		return err;
	if (!drain)
		WRITE_ONCE(dev->region->closing, false);
	else
		err = tcp_sm_region_drain(dev->region, drain_ms);
	return err ?: count;
}
static DEVICE_ATTR_WO(drain);

static struct attribute *ivshmem_attrs[] = {
	&dev_attr_region.attr,
	&dev_attr_provider.attr,
	&dev_attr_status.attr,
	&dev_attr_drain.attr,
	NULL,
};

static const struct attribute_group ivshmem_group = {
	.name = "tcp_sm",
	.attrs = ivshmem_attrs,
};

static const struct attribute_group *ivshmem_groups[] = { &ivshmem_group, NULL };

/* The own chunk: the device's word, or without a doorbell the parameter's. */
static int own_chunk(struct ivshmem *dev)
{
	int position = readl(dev->regs + REG_POSITION);

	if (!dev->pdev->msix_cap) {
		if (chunk < 0)
			dev_err(&dev->pdev->dev,
				"device without a doorbell: set the parameter chunk\n");
		return chunk < 0 ? -ENODEV : chunk;
	}
	if (position < 0) {
		dev_err(&dev->pdev->dev, "the IVSHMEM server gave no id\n");
		return -ENODEV;
	}
	if (chunk >= 0 && chunk != position) {
		dev_err(&dev->pdev->dev, "parameter chunk is %d, the device says %d\n", chunk,
			position);
		return -EINVAL;
	}
	return position;
}

static int map(struct ivshmem *dev)
{
	struct pci_dev *pdev = dev->pdev;
	int err = pcim_enable_device(pdev);

	if (err)
		return err;
	err = pci_request_regions(pdev, "tcp_sm");
	if (err)
		return err;
	dev->regs = pci_iomap(pdev, 0, 0);
	/* Memory, not registers: cached, as the other machines have it. */
	dev->memory = memremap(pci_resource_start(pdev, 2), pci_resource_len(pdev, 2),
			       MEMREMAP_WB);
	if (dev->regs && dev->memory)
		return 0;
	if (dev->memory)
		memunmap(dev->memory);
	if (dev->regs)
		pci_iounmap(pdev, dev->regs);
	pci_release_regions(pdev);
	return -ENOMEM;
}

/* How fast the memory is read (MB/s), at best: others may have the CPU meanwhile. */
static u64 read_mbps(const void *memory)
{
	u64 began, best = U64_MAX;
	void *copy = kmalloc(CACHED_TRIAL, GFP_KERNEL);
	int i;

	for (i = 0; copy && i < 8; i++) {
		began = ktime_get_ns();
		memcpy(copy, memory, CACHED_TRIAL);
		best = min(best, ktime_get_ns() - began);
	}
	kfree(copy);
	return copy ? div64_u64(CACHED_TRIAL * 1000ULL, best ?: 1) : U64_MAX;
}

/*
 * Below 4 GiB, firmware may have declared the device's memory uncached (MTRR). Some
 * hypervisors take its word, and then rings are far slower than TCP.
 */
static int check_cached(struct ivshmem *dev)
{
	u64 mbps;

	/* Not even a region's tables, nor the trial's. */
	if (pci_resource_len(dev->pdev, 2) < TCP_SM_CHUNKS_OFFSET)
		return -EINVAL;
	mbps = read_mbps(dev->memory);
	if (mbps >= cached_mbps)
		return 0;
	dev_err(&dev->pdev->dev, "memory is read at %llu MB/s: it is not cached, TCP is faster\n",
		mbps);
	dev_err(&dev->pdev->dev, "put the device above 4 GiB (OVMF does), or set cached_mbps=0\n");
	return -EOPNOTSUPP;
}

static void unmap(struct ivshmem *dev)
{
	memunmap(dev->memory);
	pci_iounmap(dev->pdev, dev->regs);
	pci_release_regions(dev->pdev);
}

static int interrupts(struct ivshmem *dev)
{
	int err;

	dev->vectors = pci_alloc_irq_vectors(dev->pdev, 1, 1, PCI_IRQ_MSIX);
	if (dev->vectors < 0) {
		dev->vectors = 0;
		return 0;
	}
	pci_set_master(dev->pdev);
	err = request_irq(pci_irq_vector(dev->pdev, 0), interrupt, 0, "tcp_sm", dev);
	if (err) {
		pci_free_irq_vectors(dev->pdev);
		dev->vectors = 0;
	}
	return err;
}

static void no_interrupts(struct ivshmem *dev)
{
	if (!dev->vectors)
		return;
	free_irq(pci_irq_vector(dev->pdev, 0), dev);
	pci_free_irq_vectors(dev->pdev);
	pci_clear_master(dev->pdev);
}

static int probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct ivshmem *dev = devm_kzalloc(&pdev->dev, sizeof(*dev), GFP_KERNEL);
	struct tcp_sm_region *region;
	int self, err;

	if (!dev)
		return -ENOMEM;
	dev->pdev = pdev;
	pci_set_drvdata(pdev, dev);
	err = map(dev);
	if (err)
		return err;
	err = check_cached(dev) ?: interrupts(dev);
	if (err)
		goto unmap;
	self = own_chunk(dev);
	if (self < 0) {
		err = self;
		goto no_interrupts;
	}
	region = tcp_sm_region_open(dev->vectors ? &with_doorbell : &plain, dev, &pdev->dev,
				    dev->memory, pci_resource_len(pdev, 2), self);
	if (IS_ERR(region)) {
		err = PTR_ERR(region);
		goto no_interrupts;
	}
	WRITE_ONCE(dev->region, region);
	return 0;

no_interrupts:
	no_interrupts(dev);
unmap:
	unmap(dev);
	return err;
}

static void remove(struct pci_dev *pdev)
{
	struct ivshmem *dev = pci_get_drvdata(pdev);

	tcp_sm_region_close(dev->region);
	no_interrupts(dev);
	unmap(dev);
}

static const struct pci_device_id ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1110) },
	{}
};
MODULE_DEVICE_TABLE(pci, ids);

static struct pci_driver driver = {
	.name = "tcp_sm",
	.id_table = ids,
	.probe = probe,
	.remove = remove,
	.dev_groups = ivshmem_groups,
};

int tcp_sm_ivshmem_init(void)
{
	return pci_register_driver(&driver);
}

void tcp_sm_ivshmem_exit(void)
{
	pci_unregister_driver(&driver);
}
