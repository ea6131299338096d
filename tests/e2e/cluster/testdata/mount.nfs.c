/*
 * usage: mount.nfs SERVER:/PATH FOLDER [-o OPTIONS]
 *
 * What mount(8) runs for "mount -t nfs", for kernels without NFS: libnfs speaks
 * NFSv3 with the server, libfuse with the kernel, and this hands on calls. A process
 * in the background serves the mount until it is unmounted. OPTIONS are those that
 * file systems have in common; libfuse refuses others.
 *
 * Files are named by path in both libraries, and errors are negative numbers. There
 * is one thread.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <limits.h>
#include <nfsc/libnfs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>

static struct nfs_context *export;

/* server acts for the user whose call is answered. */
static struct nfs_context *server(void)
{
	struct fuse_context *call = fuse_get_context();

	nfs_set_uid(export, (int)call->uid);
	nfs_set_gid(export, (int)call->gid);
	return export;
}

static struct nfsfh *handle(struct fuse_file_info *info)
{
	return (struct nfsfh *)(uintptr_t)info->fh;
}

static void *start(struct fuse_conn_info *kernel, struct fuse_config *config)
{
	(void)kernel;
	config->use_ino = 1;
	return NULL;
}

static void stop(void *nothing)
{
	(void)nothing;
	nfs_destroy_context(export);
}

static int attributes(const char *path, struct stat *st, struct fuse_file_info *info)
{
	struct nfs_stat_64 s;
	int err = nfs_lstat64(server(), path, &s);

	(void)info;
	if (err)
		return err;
	st->st_ino = s.nfs_ino;
	st->st_mode = s.nfs_mode;
	st->st_nlink = s.nfs_nlink;
	st->st_uid = s.nfs_uid;
	st->st_gid = s.nfs_gid;
	st->st_rdev = s.nfs_rdev;
	st->st_size = (off_t)s.nfs_size;
	st->st_blksize = (blksize_t)s.nfs_blksize;
	st->st_blocks = (blkcnt_t)s.nfs_blocks;
	st->st_atim = (struct timespec){ (time_t)s.nfs_atime, (long)s.nfs_atime_nsec };
	st->st_mtim = (struct timespec){ (time_t)s.nfs_mtime, (long)s.nfs_mtime_nsec };
	st->st_ctim = (struct timespec){ (time_t)s.nfs_ctime, (long)s.nfs_ctime_nsec };
	return 0;
}

static int list(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
		struct fuse_file_info *info, enum fuse_readdir_flags flags)
{
	struct nfsdir *dir;
	struct nfsdirent *entry;
	int err = nfs_opendir(server(), path, &dir);

	(void)offset, (void)info, (void)flags;
	if (err)
		return err;
	while (!err && (entry = nfs_readdir(export, dir)))
		err = fill(buffer, entry->name, &(struct stat){ .st_ino = entry->inode }, 0, 0) ? -ENOMEM : 0;
	nfs_closedir(export, dir);
	return err;
}

static int create(const char *path, mode_t mode, struct fuse_file_info *info)
{
	struct nfsfh *file;
	int err = nfs_open2(server(), path, info->flags & (O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC), (int)mode, &file);

	if (!err)
		info->fh = (uintptr_t)file;
	return err;
}

static int open_file(const char *path, struct fuse_file_info *info) { return create(path, 0, info); }

static int read_file(const char *path, char *to, size_t size, off_t offset, struct fuse_file_info *info)
{
	(void)path;
	return nfs_pread(server(), handle(info), (uint64_t)offset, size, to);
}

static int write_file(const char *path, const char *from, size_t size, off_t offset, struct fuse_file_info *info)
{
	(void)path;
	return nfs_pwrite(server(), handle(info), (uint64_t)offset, size, from);
}

static int sync_file(const char *path, int data_only, struct fuse_file_info *info)
{
	(void)path, (void)data_only;
	return nfs_fsync(server(), handle(info));
}

static int close_file(const char *path, struct fuse_file_info *info)
{
	(void)path;
	return nfs_close(server(), handle(info));
}

static int resize(const char *path, off_t size, struct fuse_file_info *info)
{
	(void)info;
	return nfs_truncate(server(), path, (uint64_t)size);
}

static int chmod_file(const char *path, mode_t mode, struct fuse_file_info *info)
{
	(void)info;
	return nfs_lchmod(server(), path, (int)mode);
}

static int chown_file(const char *path, uid_t uid, gid_t gid, struct fuse_file_info *info)
{
	struct nfs_stat_64 old;
	int err = nfs_lstat64(server(), path, &old);

	(void)info;
	if (err)
		return err;
	return nfs_lchown(export, path, (int)(uid == (uid_t)-1 ? old.nfs_uid : uid),
			  (int)(gid == (gid_t)-1 ? old.nfs_gid : gid));
}

/* moment is what utimensat(2) asks for. */
static struct timeval moment(struct timespec wanted, uint64_t old_sec, uint64_t old_nsec)
{
	struct timeval now;

	if (wanted.tv_nsec == UTIME_OMIT)
		return (struct timeval){ (time_t)old_sec, (suseconds_t)(old_nsec / 1000) };
	if (wanted.tv_nsec != UTIME_NOW)
		return (struct timeval){ wanted.tv_sec, wanted.tv_nsec / 1000 };
	gettimeofday(&now, NULL);
	return now;
}

static int set_times(const char *path, const struct timespec wanted[2], struct fuse_file_info *info)
{
	struct nfs_stat_64 old;
	int err = nfs_lstat64(server(), path, &old);

	(void)info;
	if (err)
		return err;
	return nfs_lutimes(export, path, (struct timeval[]){
		moment(wanted[0], old.nfs_atime, old.nfs_atime_nsec),
		moment(wanted[1], old.nfs_mtime, old.nfs_mtime_nsec) });
}

static int read_link(const char *path, char *to, size_t size)
{
	return nfs_readlink(server(), path, to, (int)size);
}

static int make_dir(const char *path, mode_t mode) { return nfs_mkdir2(server(), path, (int)mode); }
static int make_node(const char *path, mode_t mode, dev_t dev) { return nfs_mknod(server(), path, (int)mode, (int)dev); }
static int remove_dir(const char *path) { return nfs_rmdir(server(), path); }
static int remove_file(const char *path) { return nfs_unlink(server(), path); }
static int make_link(const char *old, const char *new) { return nfs_link(server(), old, new); }
static int make_symlink(const char *target, const char *path) { return nfs_symlink(server(), target, path); }
static int space(const char *path, struct statvfs *st) { return nfs_statvfs(server(), path, st); }

static int move(const char *old, const char *new, unsigned int flags)
{
	return flags ? -EINVAL : nfs_rename(server(), old, new);
}

static const struct fuse_operations operations = {
	.init = start, .destroy = stop, .getattr = attributes, .readdir = list, .open = open_file, .create = create,
	.read = read_file, .write = write_file, .fsync = sync_file, .release = close_file, .truncate = resize,
	.chmod = chmod_file, .chown = chown_file, .utimens = set_times, .readlink = read_link, .mkdir = make_dir,
	.mknod = make_node, .rmdir = remove_dir, .unlink = remove_file, .link = make_link, .symlink = make_symlink,
	.statfs = space, .rename = move,
};

int main(int argc, char **argv)
{
	char options[PATH_MAX + 256], host[256], *path = argc > 2 ? strstr(argv[1], ":/") : NULL;
	int all = argc == 5 && strcmp(argv[3], "-o") == 0;

	if (!path || (argc != 3 && !all) || (size_t)(path - argv[1]) >= sizeof(host)) {
		fprintf(stderr, "usage: mount.nfs SERVER:/PATH FOLDER [-o OPTIONS]\n");
		return EXIT_FAILURE;
	}
	snprintf(host, sizeof(host), "%.*s", (int)(path - argv[1]), argv[1]);
	if (snprintf(options, sizeof(options), "-oallow_other,default_permissions,subtype=nfs,fsname=%s,%s",
		     argv[1], all ? argv[4] : "rw") >= (int)sizeof(options)) {
		fprintf(stderr, "mount.nfs: options of %s are too long\n", argv[1]);
		return EXIT_FAILURE;
	}
	export = nfs_init_context();
	if (!export) {
		fprintf(stderr, "mount.nfs: no memory is left for libnfs\n");
		return EXIT_FAILURE;
	}
	nfs_umask(export, 0); /* the kernel has taken the caller's away */
	nfs_set_dircache(export, 0);
	if (nfs_mount(export, host, path + 1)) {
		fprintf(stderr, "mount.nfs: mount %s: %s\n", argv[1], nfs_get_error(export));
		return EXIT_FAILURE;
	}
	return fuse_main(4, ((char *[]){ argv[0], "-s", options, argv[2], NULL }), &operations, NULL);
}
