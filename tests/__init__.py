from .forked_coverage import free_lock_in_children

# Before the packages register what they do at a fork.
free_lock_in_children()
