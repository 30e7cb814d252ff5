"""The knapsack of units under budgets, solved."""
